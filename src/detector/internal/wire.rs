//! Protobuf's wire format for the records between the stages: fields are read where they lie, and
//! written without a copy of what they say.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use prost::DecodeError;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_varint, skip_field,
};

use super::super::StageError;
use super::super::changelog::zigzag;
use super::super::measure::Measure;
use super::super::names::{NameId, Names};

/// The fields of one message, in the order written.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
    /// Of no type that the records use.
    Other,
}

impl<'a> Fields<'a> {
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, StageError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (field, wire_type) = self.key()?;
        let value = match wire_type {
            WireType::Varint => Value::Varint(self.varint()?),
            WireType::SixtyFourBit => {
                let (bytes, rest) = self.0.split_first_chunk().ok_or_else(truncated)?;
                self.0 = rest;
                Value::Fixed(u64::from_le_bytes(*bytes))
            }
            WireType::LengthDelimited => {
                let length = usize::try_from(self.varint()?).map_err(|_| truncated())?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(truncated)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            WireType::StartGroup | WireType::EndGroup | WireType::ThirtyTwoBit => {
                let context = DecodeContext::default();
                skip_field(wire_type, field, &mut self.0, context).map_err(unreadable)?;
                Value::Other
            }
        };
        Ok(Some((field, value)))
    }

    #[inline]
    fn key(&mut self) -> Result<(u32, WireType), StageError> {
        // every field of ours has a key of one byte
        let (field, wire_type) = match self.0 {
            [key, rest @ ..] if *key < 0x80 && *key >= 8 => {
                self.0 = rest;
                let wire_type = WireType::try_from(u64::from(key & 7)).map_err(unreadable)?;
                (u32::from(key >> 3), wire_type)
            }
            _ => decode_key(&mut self.0).map_err(unreadable)?,
        };
        Ok((field, wire_type))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, StageError> {
        decode_varint(&mut self.0).map_err(unreadable)
    }
}

impl<'a> Value<'a> {
    pub(super) fn varint(self) -> Result<u64, StageError> {
        match self {
            Self::Varint(value) => Ok(value),
            Self::Fixed(_) | Self::Bytes(_) | Self::Other => Err(of_another_type()),
        }
    }

    pub(super) fn small(self) -> Result<u32, StageError> {
        u32::try_from(self.varint()?).map_err(|_| of_another_type())
    }

    pub(super) fn flag(self) -> Result<bool, StageError> {
        Ok(self.varint()? != 0)
    }

    pub(super) fn fixed(self) -> Result<u64, StageError> {
        match self {
            Self::Fixed(value) => Ok(value),
            Self::Varint(_) | Self::Bytes(_) | Self::Other => Err(of_another_type()),
        }
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], StageError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Fixed(_) | Self::Other => Err(of_another_type()),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, StageError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| of_another_type())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` takes")]
fn unreadable(error: DecodeError) -> StageError {
    StageError::State(format!(
        "an internal record cannot be read ({error}): it is damaged, or a newer flopwatch wrote it"
    ))
}

fn truncated() -> StageError {
    StageError::State("an internal record is damaged: it ends too early".into())
}

fn of_another_type() -> StageError {
    StageError::State("an internal record is damaged: a field has another type".into())
}

/// As protobuf has it, zeros are left out.
pub(super) fn put_varint(field: u8, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        out.push(field << 3);
        encode_varint(value, out);
    }
}

pub(super) fn put_fixed(field: u8, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        out.push(field << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// A part of a repeated field, or of a message: written even if empty.
pub(super) fn put_bytes(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Low halves in fields 1 to 4, high ones in 5 to 8.
pub(super) fn put_measure(measure: &Measure, out: &mut Vec<u8>) {
    out.clear();
    let Measure { accelerator_ms, flop, flop_allocated, flop_theoretical } = *measure;
    let values = [accelerator_ms, flop, flop_allocated, flop_theoretical].map(halves);
    for (field, (low, _)) in (1..).zip(values) {
        put_varint(field, low, out);
    }
    for (field, (_, high)) in (5..).zip(values) {
        put_varint(field, high, out);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of 128 bits")]
const fn halves(value: i128) -> (u64, u64) {
    let value = zigzag(value);
    (value as u64, (value >> 64) as u64)
}

/// Names of one record as its field 5, numbered as they first occur.
#[derive(Debug, Default)]
pub(super) struct LocalNames {
    local: HashMap<NameId, u64, FixedState>,
    written: Vec<u8>,
}

impl LocalNames {
    /// Index 0 is the empty name and is not sent.
    pub(super) fn index(&mut self, all: &Names, name: NameId) -> u64 {
        if name == NameId::EMPTY {
            return 0;
        }
        let next = self.local.len() as u64 + 1;
        *self.local.entry(name).or_insert_with(|| {
            put_bytes(5, all.text(name).as_bytes(), &mut self.written);
            next
        })
    }

    /// Bytes that they take.
    pub(super) fn len(&self) -> usize {
        self.written.len()
    }

    /// What to write; the next record starts without names.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.local.clear();
        std::mem::take(&mut self.written)
    }
}
