//! Usage events and accounts as bytes: protobuf and JSON of the same fields.

use std::io::Write;

use prost::Message;

use crate::detector::event::{Kind, UsageEvent};
use crate::proto::Account;
use crate::record_file::Format;

/// Replaces `bytes` by the event in the form that a file of this format holds.
pub fn encode_event(event: &UsageEvent<'_>, format: Format, bytes: &mut Vec<u8>) {
    bytes.clear();
    match format {
        Format::Lines => json_event(event, bytes),
        Format::Delimited | Format::Parquet => protobuf_event(event, bytes),
    }
}

/// Replaces `bytes` by an entry of the directory.
pub fn encode_account(account: &Account, format: Format, bytes: &mut Vec<u8>) {
    bytes.clear();
    match format {
        Format::Lines => json_account(account, bytes),
        Format::Delimited | Format::Parquet => bytes.extend_from_slice(&account.encode_to_vec()),
    }
}

/// Written by hand from borrowed names: the generated type would allocate eight strings an event.
fn protobuf_event(event: &UsageEvent<'_>, bytes: &mut Vec<u8>) {
    text(bytes, 1, &event.id);
    text(bytes, 2, &event.source);
    text(bytes, 3, &event.account_id);
    text(bytes, 4, &event.resource_id);
    text(bytes, 5, &event.region);
    text(bytes, 6, &event.fabric_id);
    text(bytes, 7, &event.accelerator);
    text(bytes, 8, &event.instance_type);
    fixed64(bytes, 9, event.quantity.to_bits());
    fixed64(bytes, 10, event.start.0);
    fixed64(bytes, 11, event.end.0);
    fixed64(bytes, 12, event.time.0);
    match event.kind {
        Kind::Usage => {}
        Kind::Correction => bytes.extend_from_slice(&[13 << 3, 1]),
    }
    let telemetry = event.telemetry;
    let floats = [
        telemetry.utilization,
        telemetry.tensor_active,
        telemetry.dram_active,
        telemetry.memory_used,
        telemetry.power_watts,
    ];
    let doubles = [telemetry.fabric_bytes, telemetry.external_bytes];
    let length = floats.iter().flatten().count() * 5 + doubles.iter().flatten().count() * 9;
    if length > 0 {
        // at most 43 bytes: the length is one byte
        bytes.extend_from_slice(&[14 << 3 | 2, u8::try_from(length).expect("at most 43")]);
        for (field, value) in (1_u8..).zip(floats) {
            if let Some(value) = value {
                bytes.push(field << 3 | 5);
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        for (field, value) in (6_u8..).zip(doubles) {
            if let Some(value) = value {
                fixed64(bytes, field, value.to_bits());
            }
        }
    }
    text(bytes, 15, &event.precision);
}

fn text(bytes: &mut Vec<u8>, field: u8, value: &str) {
    if value.is_empty() {
        return;
    }
    bytes.push(field << 3 | 2);
    prost::encoding::encode_varint(value.len() as u64, bytes);
    bytes.extend_from_slice(value.as_bytes());
}

fn fixed64(bytes: &mut Vec<u8>, field: u8, value: u64) {
    bytes.push(field << 3 | 1);
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn json_event(event: &UsageEvent<'_>, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(b"{\"id\":");
    json_text(bytes, &event.id);
    let names = [
        ("source", &event.source),
        ("account_id", &event.account_id),
        ("resource_id", &event.resource_id),
        ("region", &event.region),
        ("fabric_id", &event.fabric_id),
        ("accelerator", &event.accelerator),
        ("instance_type", &event.instance_type),
        ("precision", &event.precision),
    ];
    for (name, value) in names {
        if !value.is_empty() {
            json_name(bytes, name);
            json_text(bytes, value);
        }
    }
    print(bytes, format_args!(",\"quantity\":{}", event.quantity));
    print(bytes, format_args!(",\"start_time_unix_nano\":{}", event.start.0));
    print(bytes, format_args!(",\"end_time_unix_nano\":{}", event.end.0));
    print(bytes, format_args!(",\"time_unix_nano\":{}", event.time.0));
    match event.kind {
        Kind::Usage => {}
        Kind::Correction => bytes.extend_from_slice(b",\"kind\":\"CORRECTION\""),
    }
    json_telemetry(event, bytes);
    bytes.push(b'}');
}

fn json_telemetry(event: &UsageEvent<'_>, bytes: &mut Vec<u8>) {
    let telemetry = event.telemetry;
    let ratios = [
        ("utilization", telemetry.utilization),
        ("tensor_active", telemetry.tensor_active),
        ("dram_active", telemetry.dram_active),
        ("memory_used", telemetry.memory_used),
        ("power_watts", telemetry.power_watts),
    ];
    let amounts =
        [("fabric_bytes", telemetry.fabric_bytes), ("external_bytes", telemetry.external_bytes)];
    let before = bytes.len();
    for (name, value) in ratios {
        if let Some(value) = value {
            json_name(bytes, name);
            print(bytes, format_args!("{value}"));
        }
    }
    for (name, value) in amounts {
        if let Some(value) = value {
            json_name(bytes, name);
            print(bytes, format_args!("{value}"));
        }
    }
    if bytes.len() > before {
        // the first comma becomes the opening of the object
        bytes.splice(before..=before, *b",\"telemetry\":{");
        bytes.push(b'}');
    }
}

fn json_account(account: &Account, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(b"{\"account_id\":");
    json_text(bytes, &account.account_id);
    let names = [
        ("legal_name", &account.legal_name),
        ("owner_id", &account.owner_id),
        ("country", &account.country),
        ("incorporation_country", &account.incorporation_country),
        ("ultimate_parent_country", &account.ultimate_parent_country),
        ("payment_country", &account.payment_country),
        ("reseller_id", &account.reseller_id),
        ("contact_email", &account.contact_email),
        ("contact_phone", &account.contact_phone),
        ("address", &account.address),
        ("payment_reference", &account.payment_reference),
    ];
    for (name, value) in names {
        if !value.is_empty() {
            json_name(bytes, name);
            json_text(bytes, value);
        }
    }
    if !account.access_ips.is_empty() {
        json_name(bytes, "access_ips");
        serde_json::to_writer(&mut *bytes, &account.access_ips)
            .expect("strings in memory always serialise");
    }
    print(bytes, format_args!(",\"identity_verified\":{}", account.identity_verified));
    print(bytes, format_args!(",\"updated_unix_nano\":{}}}", account.updated_unix_nano));
}

fn json_name(bytes: &mut Vec<u8>, name: &str) {
    bytes.extend_from_slice(b",\"");
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(b"\":");
}

fn json_text(bytes: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(bytes, text).expect("a string in memory always serialises");
}

fn print(bytes: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    bytes.write_fmt(text).expect("writing to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::event::Telemetry;
    use crate::detector::time::Timestamp;
    use crate::proto;

    fn event() -> UsageEvent<'static> {
        UsageEvent {
            id: "i-1/\"7\"".into(),
            source: "meter".into(),
            account_id: "acct-1".into(),
            resource_id: "i-1".into(),
            region: "us-east-1".into(),
            accelerator: "nvidia-h100-sxm".into(),
            quantity: -0.5,
            start: Timestamp(1_767_225_600_000_000_001),
            end: Timestamp(1_767_225_900_000_000_000),
            time: Timestamp(1_767_225_901_000_000_000),
            kind: Kind::Correction,
            telemetry: Telemetry {
                tensor_active: Some(0.385),
                fabric_bytes: Some(3.6e15),
                ..Telemetry::default()
            },
            precision: "bf16".into(),
            ..UsageEvent::default()
        }
    }

    #[test]
    fn the_hand_written_protobuf_reads_back_as_the_generated_type() {
        let mut bytes = Vec::new();
        encode_event(&event(), Format::Delimited, &mut bytes);
        let read = proto::UsageEvent::decode(&*bytes).expect("valid protobuf");
        assert_eq!(read.encode_to_vec(), bytes);
        assert_eq!((read.id.as_str(), read.quantity, read.kind), ("i-1/\"7\"", -0.5, 1));
        let telemetry = read.telemetry.expect("telemetry was written");
        assert_eq!((telemetry.tensor_active, telemetry.utilization), (Some(0.385), None));
        assert_eq!(telemetry.fabric_bytes, Some(3.6e15));
        assert_eq!(read.time_unix_nano, event().time.0);
    }

    #[test]
    fn json_keeps_every_digit_of_the_instants() {
        let mut bytes = Vec::new();
        encode_event(&event(), Format::Lines, &mut bytes);
        let read: serde_json::Value = serde_json::from_slice(&bytes).expect("valid JSON");
        assert_eq!(read["id"], "i-1/\"7\"");
        assert_eq!(read["start_time_unix_nano"], 1_767_225_600_000_000_001_u64);
        assert_eq!(read["telemetry"]["tensor_active"], 0.385);
        assert_eq!(read["kind"], "CORRECTION");
    }
}
