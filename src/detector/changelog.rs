//! State as bytes: the primitives of every changelog value, versioned.
//!
//! A value begins with `VERSION`; integers are LEB128, signed ones zig-zag, text is
//! length-prefixed.

use super::StageError;
use super::measure::Measure;
use super::time::Timestamp;

/// The format that this version writes, and the newest that it reads.
///
/// 1: blocks of slices hold whole sums. 2: they hold differences.
pub const VERSION: u8 = 2;

/// Room for a value of an account that is summed in one place.
const FIRST_CAPACITY: usize = 64;

/// Builds one changelog value.
#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Default for Writer {
    fn default() -> Self {
        let mut bytes = Vec::with_capacity(FIRST_CAPACITY);
        bytes.push(VERSION);
        Self(bytes)
    }
}

impl Writer {
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub fn unsigned(&mut self, value: impl Into<u128>) {
        let mut rest: u128 = value.into();
        // nearly all fit one word, which is several times as fast
        if let Ok(mut rest) = u64::try_from(rest) {
            while rest >= 0x80 {
                let [low, ..] = rest.to_le_bytes();
                self.0.push(low | 0x80);
                rest >>= 7;
            }
            let [low, ..] = rest.to_le_bytes();
            self.0.push(low);
            return;
        }
        while rest >= 0x80 {
            let [low, ..] = rest.to_le_bytes();
            self.0.push(low | 0x80);
            rest >>= 7;
        }
        let [low, ..] = rest.to_le_bytes();
        self.0.push(low);
    }

    pub fn signed(&mut self, value: i128) {
        self.unsigned(zigzag(value));
    }

    pub fn flag(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    pub fn text(&mut self, text: &str) {
        self.unsigned(text.len() as u64);
        self.bytes(text.as_bytes());
    }

    pub fn time(&mut self, time: Timestamp) {
        self.unsigned(time.0);
    }

    /// 0 stands for none: no accepted instant is 0.
    pub fn optional_time(&mut self, time: Option<Timestamp>) {
        self.time(time.unwrap_or_default());
    }

    pub fn float(&mut self, value: f64) {
        self.bytes(&value.to_bits().to_le_bytes());
    }

    pub fn measure(&mut self, measure: &Measure) {
        self.signed(measure.accelerator_ms);
        self.signed(measure.flop);
        self.signed(measure.flop_allocated);
        self.signed(measure.flop_theoretical);
    }
}

/// Reads one changelog value.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

type Read<T> = Result<T, StageError>;

impl<'a> Reader<'a> {
    /// Refuses a format newer than ours.
    pub fn new(value: &'a [u8]) -> Read<Self> {
        match value.split_first() {
            Some((&version, rest)) if (1..=VERSION).contains(&version) => Ok(Self(rest)),
            Some((version, _)) => Err(StageError::State(format!(
                "state has format {version}, this version reads up to {VERSION}: run the newer \
                 flopwatch that wrote it"
            ))),
            None => Err(StageError::State("state record is empty".into())),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that has not been read.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    pub fn unsigned(&mut self) -> Read<u128> {
        // nearly all fit one word, which is several times as fast
        let mut value = 0u64;
        for (index, byte) in self.0.iter().enumerate().take(9) {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Ok(u128::from(value));
            }
        }
        self.long_unsigned()
    }

    fn long_unsigned(&mut self) -> Read<u128> {
        let mut value = 0u128;
        for (index, byte) in self.0.iter().enumerate().take(19) {
            value |= u128::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(damaged("integer"))
    }

    pub fn number(&mut self) -> Read<u64> {
        u64::try_from(self.unsigned()?).map_err(|_| damaged("64-bit integer"))
    }

    pub fn small(&mut self) -> Read<u32> {
        u32::try_from(self.unsigned()?).map_err(|_| damaged("32-bit integer"))
    }

    pub fn signed(&mut self) -> Read<i128> {
        self.unsigned().map(unzigzag)
    }

    pub fn flag(&mut self) -> Read<bool> {
        Ok(self.take(1)?[0] != 0)
    }

    pub fn text(&mut self) -> Read<&'a str> {
        let length = usize::try_from(self.unsigned()?).map_err(|_| damaged("length"))?;
        std::str::from_utf8(self.take(length)?).map_err(|_| damaged("text"))
    }

    /// An instant that spans are added to.
    pub fn time(&mut self) -> Read<Timestamp> {
        let time = self.any_time()?;
        if time > Timestamp::LIMIT { Err(damaged("an instant before 2525")) } else { Ok(time) }
    }

    /// An instant that is only compared or shown.
    pub fn any_time(&mut self) -> Read<Timestamp> {
        self.number().map(Timestamp)
    }

    pub fn optional_time(&mut self) -> Read<Option<Timestamp>> {
        let time = self.time()?;
        Ok((time != Timestamp::default()).then_some(time))
    }

    pub fn float(&mut self) -> Read<f64> {
        let bytes: [u8; 8] = self.take(8)?.try_into().expect("eight bytes were taken");
        Ok(f64::from_bits(u64::from_le_bytes(bytes)))
    }

    /// Of any size.
    pub fn any_measure(&mut self) -> Read<Measure> {
        Ok(Measure {
            accelerator_ms: self.signed()?,
            flop: self.signed()?,
            flop_allocated: self.signed()?,
            flop_theoretical: self.signed()?,
        })
    }

    pub fn measure(&mut self) -> Read<Measure> {
        let measure = self.any_measure()?;
        if measure.is_plausible() { Ok(measure) } else { Err(damaged("a sum below 2^100")) }
    }

    pub fn take(&mut self, length: usize) -> Read<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| damaged("length"))?;
        self.0 = rest;
        Ok(taken)
    }
}

/// The error for a value that does not parse.
pub fn damaged(what: &str) -> StageError {
    StageError::State(format!("state record is damaged: {what} expected"))
}

/// Small magnitudes of either sign become small numbers.
pub const fn zigzag(value: i128) -> u128 {
    ((value << 1) ^ (value >> 127)).cast_unsigned()
}

pub const fn unzigzag(value: u128) -> i128 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_integer_survives() {
        for value in [0, 1, -1, 63, -64, i128::from(i64::MIN), i128::MAX, i128::MIN] {
            let mut writer = Writer::default();
            writer.signed(value);
            let bytes = writer.finish();
            let mut reader = Reader::new(&bytes).expect("own version");
            assert_eq!(reader.signed(), Ok(value));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn a_newer_format_is_refused_with_the_remedy() {
        let error = Reader::new(&[VERSION + 1, 0]).expect_err("newer");
        assert!(error.to_string().contains("run the newer flopwatch"), "{error}");
    }

    #[test]
    fn a_truncated_value_is_damaged_not_a_panic() {
        let mut writer = Writer::default();
        writer.text("account");
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes[..4]).expect("own version");
        assert_eq!(reader.text(), Err(damaged("length")));
    }
}
