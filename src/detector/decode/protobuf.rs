//! `flopwatch.v1.UsageEvent` off the wire: strings are borrowed, nothing is allocated.
//!
//! Accepts and refuses exactly what prost's generated decoder does, with the same values (a
//! property test says so): the last of a repeated scalar wins, repeated `telemetry` is merged,
//! unknown fields and groups are skipped, wrong wire types, invalid UTF-8 and more than 100 levels
//! are refused. One exception: a `kind` that no version of the proto names is refused, because its
//! sign is unknown.

use crate::detector::event::{Kind, Telemetry, UsageEvent};
use crate::detector::invalid::Invalid;
use crate::detector::text::Text;
use crate::detector::time::Timestamp;

/// How deep messages and groups may nest, as in prost.
const NESTING_LIMIT: u32 = 100;

// Wire types: the low three bits of a key.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const GROUP: u32 = 3;
const GROUP_END: u32 = 4;
const FIXED32: u32 = 5;

/// Decodes one bare message into an event that nothing was put into.
pub(super) fn decode<'a>(bytes: &'a [u8], event: &mut UsageEvent<'a>) -> Result<(), Invalid> {
    read(Wire { rest: bytes }, event).map_err(Fault::refuse)
}

fn read<'a>(mut wire: Wire<'a>, event: &mut UsageEvent<'a>) -> Result<(), Fault> {
    // every encoder writes fields in order, so the next one is known; what is not as expected here
    // is left to the loop, which takes any field at any place
    wire.next_text(0x0A, &mut event.id);
    wire.next_text(0x12, &mut event.source);
    wire.next_text(0x1A, &mut event.account_id);
    wire.next_text(0x22, &mut event.resource_id);
    wire.next_text(0x2A, &mut event.region);
    wire.next_text(0x32, &mut event.fabric_id);
    wire.next_text(0x3A, &mut event.accelerator);
    wire.next_text(0x42, &mut event.instance_type);
    wire.next_fixed(0x49, |bytes| event.quantity = f64::from_le_bytes(bytes));
    wire.next_fixed(0x51, |bytes| event.start = Timestamp(u64::from_le_bytes(bytes)));
    wire.next_fixed(0x59, |bytes| event.end = Timestamp(u64::from_le_bytes(bytes)));
    wire.next_fixed(0x61, |bytes| event.time = Timestamp(u64::from_le_bytes(bytes)));
    let mut kind = 0;
    while !wire.rest.is_empty() {
        match wire.key()? {
            0x0A => event.id = wire.text("id")?,
            0x12 => event.source = wire.text("source")?,
            0x1A => event.account_id = wire.text("account_id")?,
            0x22 => event.resource_id = wire.text("resource_id")?,
            0x2A => event.region = wire.text("region")?,
            0x32 => event.fabric_id = wire.text("fabric_id")?,
            0x3A => event.accelerator = wire.text("accelerator")?,
            0x42 => event.instance_type = wire.text("instance_type")?,
            0x49 => event.quantity = f64::from_le_bytes(wire.fixed()?),
            0x51 => event.start = Timestamp(u64::from_le_bytes(wire.fixed()?)),
            0x59 => event.end = Timestamp(u64::from_le_bytes(wire.fixed()?)),
            0x61 => event.time = Timestamp(u64::from_le_bytes(wire.fixed()?)),
            // an enum is an int32: the wire's upper half is cut off
            0x68 => kind = wire.varint()? & 0xFFFF_FFFF,
            0x72 => telemetry(Wire { rest: wire.bytes()? }, &mut event.telemetry)?,
            0x7A => event.precision = wire.text("precision")?,
            key => wire.unknown("event", 15, key, NESTING_LIMIT)?,
        }
    }
    event.kind = match kind {
        0 => Kind::Usage,
        1 => Kind::Correction,
        unknown => return Err(Fault::Kind(unknown)),
    };
    if event.time == Timestamp(0) {
        event.time = event.end;
    }
    Ok(())
}

/// Merges one `telemetry` field into what earlier ones gave.
fn telemetry(mut wire: Wire<'_>, telemetry: &mut Telemetry) -> Result<(), Fault> {
    wire.next_fixed(0x0D, |bytes| telemetry.utilization = Some(f32::from_le_bytes(bytes)));
    wire.next_fixed(0x15, |bytes| telemetry.tensor_active = Some(f32::from_le_bytes(bytes)));
    wire.next_fixed(0x1D, |bytes| telemetry.dram_active = Some(f32::from_le_bytes(bytes)));
    wire.next_fixed(0x25, |bytes| telemetry.memory_used = Some(f32::from_le_bytes(bytes)));
    wire.next_fixed(0x2D, |bytes| telemetry.power_watts = Some(f32::from_le_bytes(bytes)));
    wire.next_fixed(0x31, |bytes| telemetry.fabric_bytes = Some(f64::from_le_bytes(bytes)));
    wire.next_fixed(0x39, |bytes| telemetry.external_bytes = Some(f64::from_le_bytes(bytes)));
    while !wire.rest.is_empty() {
        match wire.key()? {
            0x0D => telemetry.utilization = Some(f32::from_le_bytes(wire.fixed()?)),
            0x15 => telemetry.tensor_active = Some(f32::from_le_bytes(wire.fixed()?)),
            0x1D => telemetry.dram_active = Some(f32::from_le_bytes(wire.fixed()?)),
            0x25 => telemetry.memory_used = Some(f32::from_le_bytes(wire.fixed()?)),
            0x2D => telemetry.power_watts = Some(f32::from_le_bytes(wire.fixed()?)),
            0x31 => telemetry.fabric_bytes = Some(f64::from_le_bytes(wire.fixed()?)),
            0x39 => telemetry.external_bytes = Some(f64::from_le_bytes(wire.fixed()?)),
            key => wire.unknown("telemetry", 7, key, NESTING_LIMIT - 1)?,
        }
    }
    Ok(())
}

/// What is left to read.
struct Wire<'a> {
    rest: &'a [u8],
}

impl<'a> Wire<'a> {
    /// Takes a short text in ASCII if it comes next under this key.
    #[inline]
    fn next_text(&mut self, expected: u8, text: &mut Text<'a>) {
        if let [key, length @ ..0x80, rest @ ..] = self.rest
            && *key == expected
            && let Some((value, rest)) = rest.split_at_checked(usize::from(*length))
            && let Some(value) = Text::of_ascii(value)
        {
            *text = value;
            self.rest = rest;
        }
    }

    /// Takes so many bytes if they come next under this key.
    #[inline]
    fn next_fixed<const N: usize>(&mut self, expected: u8, take: impl FnOnce([u8; N])) {
        if let [key, rest @ ..] = self.rest
            && *key == expected
            && let Some((value, rest)) = rest.split_first_chunk()
        {
            take(*value);
            self.rest = rest;
        }
    }

    /// A field number and wire type, as they stand.
    #[inline]
    fn key(&mut self) -> Result<u32, Fault> {
        u32::try_from(self.varint()?).map_err(|_| Fault::Key)
    }

    /// Skips a field that the message does not have: its fields are numbered up to `last`.
    #[cold]
    fn unknown(
        &mut self,
        message: &'static str,
        last: u32,
        key: u32,
        depth: u32,
    ) -> Result<(), Fault> {
        check(key)?;
        if key >> 3 <= last {
            return Err(Fault::WireType { message, key });
        }
        self.skip(key, depth)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Fault> {
        match self.rest.split_first() {
            Some((&byte, rest)) if byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(byte))
            }
            Some(_) => self.long_varint(),
            None => Err(Fault::Truncated),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for (index, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7F) << (7 * index);
            if byte < 0x80 {
                if index == 9 && byte > 1 {
                    return Err(Fault::Varint);
                }
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 { Fault::Truncated } else { Fault::Varint })
    }

    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (value, rest) = self.rest.split_first_chunk().ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(*value)
    }

    #[inline]
    fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = usize::try_from(self.varint()?).map_err(|_| Fault::Truncated)?;
        let (value, rest) = self.rest.split_at_checked(length).ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(value)
    }

    #[inline]
    fn text(&mut self, field: &'static str) -> Result<Text<'a>, Fault> {
        Text::of(self.bytes()?).ok_or(Fault::Utf8(field))
    }

    /// Skips the value of an unknown field; `depth` bounds the recursion into groups.
    fn skip(&mut self, key: u32, depth: u32) -> Result<(), Fault> {
        if depth == 0 {
            return Err(Fault::Nesting);
        }
        match key & 7 {
            VARINT => self.varint().map(drop),
            FIXED64 => self.fixed::<8>().map(drop),
            BYTES => self.bytes().map(drop),
            FIXED32 => self.fixed::<4>().map(drop),
            GROUP => loop {
                let inner = self.key()?;
                check(inner)?;
                if inner & 7 == GROUP_END {
                    return if inner >> 3 == key >> 3 { Ok(()) } else { Err(Fault::Group) };
                }
                self.skip(inner, depth - 1)?;
            },
            _ => Err(Fault::Group),
        }
    }
}

/// Whether a field can have this number and wire type.
fn check(key: u32) -> Result<(), Fault> {
    if key & 7 > FIXED32 || key >> 3 == 0 { Err(Fault::Key) } else { Ok(()) }
}

/// Why bytes are no usage event; small, so that the hot path moves no strings.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Truncated,
    Varint,
    Key,
    WireType { message: &'static str, key: u32 },
    Utf8(&'static str),
    Group,
    Nesting,
    Kind(u64),
}

impl Fault {
    #[cold]
    fn refuse(self) -> Invalid {
        let detail = match self {
            Self::Truncated => "ends inside a field".to_owned(),
            Self::Varint => "has a varint of more than 64 bits".to_owned(),
            Self::Key => "has a field key that no field can have".to_owned(),
            Self::WireType { message, key } => {
                format!("{message} field {} has the wrong wire type {}", key >> 3, key & 7)
            }
            Self::Utf8(field) => format!("{field} is not UTF-8"),
            Self::Group => "ends a group that was not begun".to_owned(),
            Self::Nesting => format!("is nested deeper than {NESTING_LIMIT} levels"),
            Self::Kind(kind) => format!("kind {kind} is unknown: 0 is USAGE, 1 is CORRECTION"),
        };
        Invalid::undecodable(format!("protobuf: {detail}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto;

    /// What the contract makes of the message that prost decodes; `None`: refused for its kind.
    fn expected(message: &proto::UsageEvent) -> Option<UsageEvent<'_>> {
        let telemetry = message.telemetry.unwrap_or_default();
        let time = message.time_unix_nano;
        Some(UsageEvent {
            id: message.id.as_str().into(),
            source: message.source.as_str().into(),
            account_id: message.account_id.as_str().into(),
            resource_id: message.resource_id.as_str().into(),
            region: message.region.as_str().into(),
            fabric_id: message.fabric_id.as_str().into(),
            accelerator: message.accelerator.as_str().into(),
            instance_type: message.instance_type.as_str().into(),
            quantity: message.quantity,
            start: Timestamp(message.start_time_unix_nano),
            end: Timestamp(message.end_time_unix_nano),
            time: Timestamp(if time == 0 { message.end_time_unix_nano } else { time }),
            kind: match message.kind {
                0 => Kind::Usage,
                1 => Kind::Correction,
                _ => return None,
            },
            telemetry: Telemetry {
                utilization: telemetry.utilization,
                tensor_active: telemetry.tensor_active,
                dram_active: telemetry.dram_active,
                memory_used: telemetry.memory_used,
                power_watts: telemetry.power_watts,
                fabric_bytes: telemetry.fabric_bytes,
                external_bytes: telemetry.external_bytes,
            },
            precision: message.precision.as_str().into(),
        })
    }

    fn decoded(bytes: &[u8]) -> Result<UsageEvent<'_>, Invalid> {
        let mut event = UsageEvent::default();
        decode(bytes, &mut event).map(|()| event)
    }

    fn same(bytes: &[u8]) -> Result<(), TestCaseError> {
        // debug output tells NaN from a number and -0 from 0, and equal NaN are equal
        let ours = decoded(bytes);
        match proto::UsageEvent::decode(bytes) {
            Err(error) => prop_assert!(ours.is_err(), "prost refuses {bytes:02x?}: {error}"),
            Ok(message) => match expected(&message) {
                None => prop_assert!(ours.is_err(), "unknown kind accepted in {bytes:02x?}"),
                Some(event) => prop_assert_eq!(
                    format!("{ours:?}"),
                    format!("{:?}", Ok::<_, Invalid>(event)),
                    "{:02x?}",
                    bytes
                ),
            },
        }
        Ok(())
    }

    fn put_varint(mut value: u64, padding: usize, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push(u8::try_from(value & 0x7F).expect("seven bits") | 0x80);
            value >>= 7;
        }
        let last = u8::try_from(value).expect("seven bits");
        if padding == 0 {
            out.push(last);
        } else {
            out.push(last | 0x80);
            out.extend(std::iter::repeat_n(0x80, padding - 1));
            out.push(0);
        }
    }

    fn put_field(field: u32, wire_type: u32, padding: usize, payload: &[u8], out: &mut Vec<u8>) {
        put_varint(u64::from(field << 3 | wire_type), padding, out);
        if wire_type == BYTES {
            put_varint(payload.len() as u64, 0, out);
        }
        out.extend_from_slice(payload);
    }

    /// One field with its right wire type, now and then with a wrong one.
    fn known(field: u32) -> BoxedStrategy<Vec<u8>> {
        let right = match field {
            9..=12 => FIXED64,
            13 => VARINT,
            _ => BYTES,
        };
        let wire_type = prop_oneof![60 => Just(right), 1 => 0..8_u32];
        let kind = prop_oneof![Just(0), Just(1), Just(1 << 32), Just(2), any::<u64>()];
        let numbers = prop_oneof![
            any::<u64>().prop_map(u64::to_le_bytes),
            any::<f64>().prop_map(f64::to_le_bytes),
            Just([0; 8]),
        ];
        let payload = match field {
            9..=12 => numbers.prop_map(|bytes| bytes.to_vec()).boxed(),
            13 => kind
                .prop_map(|kind| {
                    let mut out = Vec::new();
                    put_varint(kind, 0, &mut out);
                    out
                })
                .boxed(),
            14 => telemetry_bytes().boxed(),
            _ => prop_oneof![
                20 => "[a-z0-9-]{0,20}".prop_map(String::into_bytes),
                4 => "\\PC{0,8}".prop_map(String::into_bytes),
                1 => proptest::collection::vec(any::<u8>(), 0..6),
            ]
            .boxed(),
        };
        (wire_type, prop_oneof![30 => Just(0), 1 => 1..4_usize], payload)
            .prop_map(move |(wire_type, padding, payload)| {
                let mut out = Vec::new();
                put_field(field, wire_type, padding, &payload, &mut out);
                out
            })
            .boxed()
    }

    fn telemetry_bytes() -> impl Strategy<Value = Vec<u8>> {
        let field = (
            1..=7_u32,
            any::<f64>(),
            any::<f32>(),
            prop_oneof![40 => Just(false), 1 => Just(true)],
        )
            .prop_map(|(field, wide, narrow, wrong)| {
                let mut out = Vec::new();
                if (field > 5) != wrong {
                    put_field(field, FIXED64, 0, &wide.to_le_bytes(), &mut out);
                } else {
                    put_field(field, FIXED32, 0, &narrow.to_le_bytes(), &mut out);
                }
                out
            });
        let part = prop_oneof![8 => field, 1 => unknown()];
        proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
    }

    fn unknown() -> BoxedStrategy<Vec<u8>> {
        let number = prop_oneof![16..40_u32, Just((1 << 29) - 1)];
        let leaf =
            (number.clone(), 0..6_u32, any::<u64>()).prop_map(|(field, wire_type, value)| {
                let mut out = Vec::new();
                match wire_type {
                    FIXED64 => put_field(field, FIXED64, 0, &value.to_le_bytes(), &mut out),
                    FIXED32 => put_field(field, FIXED32, 0, &[1, 2, 3, 4], &mut out),
                    BYTES => put_field(field, BYTES, 0, b"unknown", &mut out),
                    _ => {
                        put_field(field, VARINT, 0, &[], &mut out);
                        put_varint(value, 0, &mut out);
                    }
                }
                out
            });
        leaf.prop_recursive(4, 16, 4, move |inner| {
            (number.clone(), proptest::collection::vec(inner, 0..4)).prop_map(|(field, parts)| {
                let mut out = Vec::new();
                put_field(field, GROUP, 0, &parts.concat(), &mut out);
                put_field(field, GROUP_END, 0, &[], &mut out);
                out
            })
        })
        .boxed()
    }

    fn messages() -> impl Strategy<Value = Vec<u8>> {
        let field = prop_oneof![12 => (1..=15_u32).prop_flat_map(known), 2 => unknown()];
        proptest::collection::vec(field, 0..24).prop_map(|fields| fields.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

        #[test]
        fn any_order_of_known_and_unknown_fields_decodes_as_prost_does(bytes in messages()) {
            same(&bytes)?;
        }

        #[test]
        fn damaged_messages_decode_or_are_refused_as_prost_does(
            bytes in messages(),
            cut in any::<prop::sample::Index>(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = bytes;
            for (index, value) in changes {
                if !bytes.is_empty() {
                    let index = index.index(bytes.len());
                    bytes[index] = value;
                }
            }
            same(&bytes)?;
            bytes.truncate(cut.index(bytes.len() + 1));
            same(&bytes)?;
        }

        #[test]
        fn random_bytes_decode_or_are_refused_as_prost_does(
            bytes in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            same(&bytes)?;
        }
    }

    #[test]
    fn groups_nest_as_deep_as_prost_allows() {
        for depth in [1, 50, 98, 99, 100, 101, 5000] {
            let mut bytes = Vec::new();
            for _ in 0..depth {
                put_field(20, GROUP, 0, &[], &mut bytes);
            }
            for _ in 0..depth {
                put_field(20, GROUP_END, 0, &[], &mut bytes);
            }
            same(&bytes).expect("same as prost");
            let mut inside = Vec::new();
            put_field(14, BYTES, 0, &bytes, &mut inside);
            same(&inside).expect("same as prost");
        }
    }

    #[test]
    fn ten_byte_varints_overflow_as_in_prost() {
        for last in [0, 1, 2, 0x7F, 0x80] {
            // field 16 is unknown: only the varint itself can be at fault
            let mut bytes = vec![0x80, 0x01];
            bytes.extend([0xFF; 9]);
            bytes.push(last);
            same(&bytes).expect("same as prost");
            bytes.extend([0x80; 12]);
            same(&bytes).expect("same as prost");
        }
    }

    #[test]
    fn the_last_kind_counts_and_an_unknown_one_is_refused() {
        let refused = decoded(&[0x68, 7]).expect_err("7 names no kind");
        assert!(refused.detail.contains("kind 7 is unknown"), "{}", refused.detail);
        assert_eq!(decoded(&[0x68, 7, 0x68, 1]).map(|event| event.kind), Ok(Kind::Correction));
    }

    #[test]
    fn a_message_without_time_was_emitted_at_its_end() {
        let message = proto::UsageEvent { end_time_unix_nano: 5, ..Default::default() };
        assert_eq!(decoded(&message.encode_to_vec()).map(|event| event.time), Ok(Timestamp(5)));
    }
}
