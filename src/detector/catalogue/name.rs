//! How names are compared: letters and digits only, without case.

/// Letters and digits of a name, in lower case, on the stack.
pub(super) struct Name {
    bytes: [u8; CAPACITY],
    length: usize,
}

/// A name of 256 bytes in lower case: a letter grows from two bytes to three at most.
const CAPACITY: usize = 384;

impl Name {
    /// `None`: longer than any name may be.
    pub(super) fn of(text: &str) -> Option<Self> {
        let mut name = Self { bytes: [0; CAPACITY], length: 0 };
        for letter in text.chars() {
            if letter.is_ascii() {
                if letter.is_ascii_alphanumeric() {
                    name.push(letter.to_ascii_lowercase())?;
                }
            } else if letter.is_alphanumeric() {
                letter.to_lowercase().try_for_each(|lower| name.push(lower))?;
            }
        }
        Some(name)
    }

    fn push(&mut self, letter: char) -> Option<()> {
        let end = self.length + letter.len_utf8();
        letter.encode_utf8(self.bytes.get_mut(self.length..end)?);
        self.length = end;
        Some(())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The product inside a scheduler's name for it, if there is anything around it: Slurm's
    /// `gpu:`, the `-SHARED` of time-sliced GPUs, and MIG profiles (`MIG 1g.5gb`, `1g.10gb+me`).
    ///
    /// A slice or share resolves to the whole product: quantity counts accelerators, so the meter
    /// states the fraction there, and one that does not is over-counted, never under-counted.
    pub(super) fn undecorated(&self) -> Option<&[u8]> {
        let name = self.as_bytes();
        let product = without_prefix(name, b"gres");
        let product = without_prefix(product, b"gpu");
        let product = without_suffix(product, b"shared");
        let product = without_mig_profile(product).unwrap_or(product);
        (product.len() < name.len()).then_some(product)
    }
}

fn without_prefix<'a>(name: &'a [u8], prefix: &[u8]) -> &'a [u8] {
    name.strip_prefix(prefix).unwrap_or(name)
}

fn without_suffix<'a>(name: &'a [u8], suffix: &[u8]) -> &'a [u8] {
    name.strip_suffix(suffix).unwrap_or(name)
}

/// `[mig]<n>g<memory>gb[me|meall|gfx]` at the end of a name.
fn without_mig_profile(name: &[u8]) -> Option<&[u8]> {
    let mut rest = name;
    for attribute in [&b"meall"[..], b"me", b"gfx"] {
        rest = without_suffix(rest, attribute);
    }
    rest = rest.strip_suffix(b"gb")?;
    let memory = rest.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    rest = &rest[..rest.len() - memory];
    rest = rest.strip_suffix(b"g")?;
    let (slices, rest) = rest.split_last()?;
    (memory > 0 && slices.is_ascii_digit()).then(|| without_suffix(rest, b"mig"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(text: &str) -> String {
        let name = Name::of(text).expect("short enough");
        String::from_utf8(name.as_bytes().to_vec()).expect("made of characters")
    }

    fn undecorated(text: &str) -> Option<String> {
        let name = Name::of(text).expect("short enough");
        let product = name.undecorated()?;
        Some(String::from_utf8(product.to_vec()).expect("made of characters"))
    }

    #[test]
    fn only_letters_and_digits_count() {
        assert_eq!(normalised("NVIDIA H100-80GB_HBM3 (SXM5)"), "nvidiah10080gbhbm3sxm5");
        assert_eq!(normalised("昇腾 910B"), "昇腾910b");
        assert_eq!(normalised("Gaudi® 2™"), "gaudi2");
        assert_eq!(normalised(" - "), "");
    }

    #[test]
    fn the_longest_accepted_name_fits_and_a_longer_one_is_no_name() {
        // U+023A grows from two bytes to three in lower case
        assert_eq!(normalised(&"\u{23a}".repeat(128)).len(), CAPACITY);
        assert!(Name::of(&"x".repeat(CAPACITY + 1)).is_none());
    }

    #[test]
    fn slices_and_shares_name_their_product() {
        let product = Some("nvidiaa100sxm440gb".to_owned());
        assert_eq!(undecorated("NVIDIA A100-SXM4-40GB MIG 1g.5gb"), product);
        assert_eq!(undecorated("NVIDIA-A100-SXM4-40GB-MIG-3g.20gb"), product);
        assert_eq!(undecorated("NVIDIA-A100-SXM4-40GB-SHARED"), product);
        assert_eq!(undecorated("gres/gpu:nvidia_a100-sxm4-40gb_1g.5gb"), product);
        assert_eq!(undecorated("H100 MIG 1g.10gb+me"), Some("h100".to_owned()));
        assert_eq!(undecorated("nvidia-a100-sxm4-40gb"), None);
        assert_eq!(undecorated("nvidia-h100-80gb"), None);
    }
}
