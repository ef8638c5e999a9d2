//! Text that a record lends, or that had to be made of its escapes: bytes known to be UTF-8.
//!
//! The hot path compares and hashes names and needs no `str` of them. Checking a short name for
//! bytes beyond ASCII takes a tenth of what `str::from_utf8` does, so that is what is done once,
//! and the whole check only where it is needed.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

/// UTF-8, as bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Text<'a>(Cow<'a, [u8]>);

impl<'a> Text<'a> {
    /// Borrows bytes; `None` when they are not UTF-8.
    #[inline]
    pub fn of(bytes: &'a [u8]) -> Option<Self> {
        (is_ascii(bytes) || std::str::from_utf8(bytes).is_ok())
            .then_some(Self(Cow::Borrowed(bytes)))
    }

    /// Borrows bytes; `None` when they are not ASCII, and so need a closer look.
    #[inline]
    pub fn of_ascii(bytes: &'a [u8]) -> Option<Self> {
        is_ascii(bytes).then_some(Self(Cow::Borrowed(bytes)))
    }

    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its bytes are the record's own.
    pub fn is_borrowed(&self) -> bool {
        matches!(self.0, Cow::Borrowed(_))
    }

    /// The text on its own.
    pub fn into_owned(self) -> Text<'static> {
        Text(Cow::Owned(self.0.into_owned()))
    }
}

/// Whether two names are equal, without a call for a few bytes.
#[inline]
pub fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && {
        let mut differ = 0;
        each_word(one, other, |one, other| differ |= one ^ other);
        differ == 0
    }
}

#[inline]
fn is_ascii(bytes: &[u8]) -> bool {
    const HIGH_BITS: u128 = u128::from_ne_bytes([0x80; 16]);
    let mut seen = 0;
    each_word(bytes, bytes, |word, _| seen |= word);
    seen & HIGH_BITS == 0
}

/// Every byte of two names of one length, in words at the same places; the last word may overlap
/// the one before.
#[inline]
fn each_word(one: &[u8], other: &[u8], mut word: impl FnMut(u128, u128)) {
    let (Some(last), Some(other_last)) = (one.last_chunk(), other.last_chunk()) else {
        return each_half(one, other, word);
    };
    let (words, _) = one.as_chunks();
    let (other_words, _) = other.as_chunks();
    for (one, other) in words.iter().zip(other_words) {
        word(u128::from_ne_bytes(*one), u128::from_ne_bytes(*other));
    }
    word(u128::from_ne_bytes(*last), u128::from_ne_bytes(*other_last));
}

/// The same for fewer bytes than a word has.
#[inline]
fn each_half(one: &[u8], other: &[u8], mut word: impl FnMut(u128, u128)) {
    let half = |bytes: &[u8; 8]| u128::from(u64::from_ne_bytes(*bytes));
    match (one.first_chunk(), one.last_chunk(), other.first_chunk(), other.last_chunk()) {
        (Some(first), Some(last), Some(other_first), Some(other_last)) => {
            word(half(first), half(other_first));
            word(half(last), half(other_last));
        }
        _ => {
            for (one, other) in one.iter().zip(other) {
                word(u128::from(*one), u128::from(*other));
            }
        }
    }
}

/// Checks the bytes again: not for the hot path.
impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).expect("text is checked when it is made")
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text.as_bytes()))
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text.into_bytes()))
    }
}

impl<'a> From<Cow<'a, str>> for Text<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        match text {
            Cow::Borrowed(text) => text.into(),
            Cow::Owned(text) => text.into(),
        }
    }
}

impl PartialEq<str> for Text<'_> {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other.as_bytes()
    }
}

impl PartialEq<&str> for Text<'_> {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_are_text_exactly_when_they_are_utf_8(
            mut bytes in proptest::collection::vec(prop_oneof![20 => 0..0x80_u8, 1 => any::<u8>()], 0..40),
            tail in "\\PC{0,3}",
        ) {
            prop_assert_eq!(Text::of(&bytes).is_some(), std::str::from_utf8(&bytes).is_ok());
            bytes.retain(u8::is_ascii);
            bytes.extend_from_slice(tail.as_bytes());
            let text = Text::of(&bytes).expect("UTF-8");
            prop_assert_eq!(str::as_bytes(&text), &*bytes);
            prop_assert!(is_same(&bytes, &bytes.clone()));
            for at in 0..bytes.len() {
                let mut other = bytes.clone();
                other[at] ^= 1;
                prop_assert!(!is_same(&bytes, &other) && !is_same(&bytes, &bytes[..at]));
            }
        }
    }
}
