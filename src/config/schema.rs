//! JSON Schema 2020-12 of the configuration, from the tables: what editors complete and check.

use serde_json::{Map, Value, json};

use super::table::{Fallback, Row, Table, Type};

/// The whole schema.
#[must_use]
pub fn json_schema() -> Value {
    let mut definitions = Map::new();
    let mut root = Value::Null;
    for table in super::tables() {
        if table.name == "root" {
            root = object(&table);
        } else {
            definitions.insert(table.name.to_owned(), definition(&table));
        }
    }
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bellwether.yaml",
    });
    if let (Value::Object(schema), Value::Object(root)) = (&mut schema, root) {
        schema.extend(root);
        schema.insert("patternProperties".to_owned(), json!({ "^x-": true }));
        schema.insert("$defs".to_owned(), Value::Object(definitions));
    }
    schema
}

fn definition(table: &Table) -> Value {
    let block = object(table);
    let mut forms = Vec::new();
    if let Some(short) = table.short
        && let Some(row) = table.rows.iter().find(|row| row.key == short)
    {
        forms.push(of(&row.ty, row.range));
    }
    if table.short_true {
        forms.push(json!({ "const": true }));
    }
    if forms.is_empty() {
        return block;
    }
    forms.push(block);
    json!({ "anyOf": forms })
}

fn object(table: &Table) -> Value {
    let properties: Map<String, Value> = table
        .rows
        .iter()
        .map(|row| (row.key.to_owned(), property(row)))
        .collect();
    let required: Vec<&str> = table
        .rows
        .iter()
        .filter(|row| row.fallback == Fallback::Required)
        .map(|row| row.key)
        .collect();
    let mut out = json!({
        "type": "object",
        "description": table.doc.trim(),
        "properties": properties,
        "additionalProperties": false,
    });
    if let (Value::Object(out), false) = (&mut out, required.is_empty()) {
        out.insert("required".to_owned(), json!(required));
    }
    out
}

fn property(row: &Row) -> Value {
    let mut schema = of(&row.ty, row.range);
    // Siblings of `$ref` are allowed since 2019-09.
    if let Value::Object(schema) = &mut schema {
        schema.insert("description".to_owned(), json!(row.doc.trim()));
        if let (Fallback::Text(text), None) = (row.fallback, row.shown)
            && text != "{}"
        {
            schema.insert("default".to_owned(), default(text));
        }
    }
    schema
}

fn default(text: &str) -> Value {
    if let Some(items) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return items
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(default)
            .collect();
    }
    match text {
        "true" => json!(true),
        "false" => json!(false),
        _ => text
            .parse::<u64>()
            .map_or_else(|_| json!(text), |number| json!(number)),
    }
}

/// Where `${…}` may stand instead of a number or a word.
fn filled_in() -> Value {
    json!({ "type": "string", "pattern": "\\$\\{" })
}

fn of(ty: &Type, range: Option<(u32, u32)>) -> Value {
    match ty {
        Type::Bool => json!({ "anyOf": [{ "type": "boolean" }, filled_in()] }),
        Type::Int => {
            let mut number = json!({ "type": "integer", "minimum": 0 });
            if let (Value::Object(number), Some((low, high))) = (&mut number, range) {
                number.insert("minimum".to_owned(), json!(low));
                if high != u32::MAX {
                    number.insert("maximum".to_owned(), json!(high));
                }
            }
            json!({ "anyOf": [number, filled_in()] })
        }
        Type::Any | Type::Text { pattern: "", .. } => json!({ "type": ["string", "number", "boolean"] }),
        Type::Text { pattern, example, .. } => json!({
            "type": ["string", "number"], "pattern": format!("({pattern})|\\$\\{{"), "examples": [example],
        }),
        Type::Words(words) => {
            let mut all: Vec<Value> = words.iter().map(|word| json!(word)).collect();
            // YAML 1.1 tools turn a bare `off` into false, and a bare 1.2 into a number.
            all.extend(words.iter().filter_map(|word| match *word {
                "off" => Some(json!(false)),
                word => word.parse::<f64>().ok().map(|number| json!(number)),
            }));
            json!({ "anyOf": [{ "enum": all }, filled_in()] })
        }
        Type::Off(inner) => json!({ "anyOf": [{ "enum": ["off", false] }, of(inner, range)] }),
        Type::Either(a, b) => json!({ "anyOf": [of(a, range), of(b, range)] }),
        Type::Many(inner) => {
            let one = of(inner, range);
            json!({ "anyOf": [one, { "type": "array", "items": one }] })
        }
        Type::List(inner) => json!({ "type": "array", "items": of(inner, range) }),
        Type::Map(inner) => json!({ "type": "object", "additionalProperties": of(inner, range) }),
        Type::Object(table) => json!({ "$ref": format!("#/$defs/{}", table().name) }),
    }
}
