//! `[input]`: the format of records, and the map from a foreign JSON's fields to ours.

use std::collections::BTreeMap;

use super::field::{Field, Table};
use super::tree::{Node, Place, Value};
use super::{Result, field_of};
use crate::detector::decode::{Constant, FieldSource, Format, InputRules, Mapping};
use crate::error::Fatal;

const SOURCE: &str = "right would be \"/json/pointer\", { pointer = \"/json/pointer\", unit = \
                      \"h\" } or { constant = \"x\" }";
/// The fields of ours that are nested: `telemetry.utilization`.
const NESTED: &str = "telemetry";

pub(super) fn read(tree: &Node) -> Result<InputRules> {
    let field = field_of(tree, "input.format");
    let format = field.choice(&Format::ALL, Format::name)?;
    let fields = field_of(tree, "input.fields");
    let sources = sources(&fields.table()?)?;
    if sources.is_empty() {
        return match format {
            Format::Mapped => {
                Err(field.refuse("mapped needs [input.fields]: id = \"/json/pointer\", ..."))
            }
            Format::Auto
            | Format::Protobuf
            | Format::Json
            | Format::Cloudevents
            | Format::Openmeter => Ok(InputRules { format, fields: None }),
        };
    }
    let places: BTreeMap<String, Place> = sources
        .iter()
        .map(|(name, (place, _))| (format!("input.fields.{name}"), place.clone()))
        .collect();
    let sources = sources.into_iter().map(|(name, (_, source))| (name, source)).collect();
    let mapping = Mapping::new(sources).map_err(|error| {
        // The message begins with the field that is wrong, or with the table.
        let named = error.split(':').next().and_then(|name| places.get(name));
        let place = named.unwrap_or(&fields.node.place);
        Fatal::Config(format!("{place}: {error}"))
    })?;
    Ok(InputRules { format, fields: Some(mapping) })
}

type Sources = BTreeMap<String, (Place, FieldSource)>;

fn sources(table: &Table<'_>) -> Result<Sources> {
    let mut sources = Sources::new();
    for (name, field) in table.fields() {
        if name == NESTED && matches!(field.node.value, Value::Table(_)) {
            for (inner, field) in field.table()?.fields() {
                add(&mut sources, format!("{NESTED}.{inner}"), &field)?;
            }
        } else {
            add(&mut sources, name.clone(), &field)?;
        }
    }
    Ok(sources)
}

fn add(sources: &mut Sources, name: String, field: &Field<'_>) -> Result<()> {
    let source = (field.node.place.clone(), source(field)?);
    match sources.insert(name, source) {
        None => Ok(()),
        Some(_) => Err(field.wrong("it is given twice", "right would be once")),
    }
}

fn source(field: &Field<'_>) -> Result<FieldSource> {
    if let Value::Text(pointer) = &field.node.value {
        return Ok(FieldSource { pointer: Some(pointer.clone()), ..FieldSource::default() });
    }
    let table = field.table().map_err(|_| field.refuse(SOURCE))?;
    table.refuse_unknown(&["pointer", "constant", "unit"])?;
    let text = |name: &str| -> Result<Option<String>> {
        table.field(name).map(|field| Ok(field.text()?.to_owned())).transpose()
    };
    Ok(FieldSource {
        pointer: text("pointer")?,
        constant: table.field("constant").map(|field| constant(&field)).transpose()?,
        unit: text("unit")?,
    })
}

fn constant(field: &Field<'_>) -> Result<Constant> {
    match &field.node.value {
        Value::Text(text) => Ok(Constant::Text(text.clone())),
        Value::Integer(number) => Ok(Constant::Integer(*number)),
        Value::Float(number) => Ok(Constant::Float(*number)),
        Value::Boolean(flag) => Ok(Constant::Boolean(*flag)),
        Value::Datetime(_) | Value::List(_) | Value::Table(_) => {
            Err(field.refuse("right would be a text, a number, true or false"))
        }
    }
}
