//! An endpoint as a list writes it: in a discovery file, in the answer of an HTTP source.
//!
//! Either an address alone or an object with an address: the same words as `endpoints` in the configuration, so that a
//! list may be moved between the two.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::config::yaml;
use crate::net::{Address, SocketAddress};

use super::{MAX_MEMBERS, Member, normalize};

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected an address or an object with `address`")]
enum Written {
    Short(String),
    Long(Long),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    address: String,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default, deserialize_with = "text")]
    zone: Option<String>,
    #[serde(default)]
    priority: u8,
    #[serde(default, deserialize_with = "text")]
    host: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, Text>,
}

/// A text, or what looks like a number and is meant as one: `rack: 5`.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected text")]
enum Text {
    Written(String),
    Number(serde_json::Number),
    Bool(bool),
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        match text {
            Text::Written(text) => text,
            Text::Number(number) => number.to_string(),
            Text::Bool(is) => is.to_string(),
        }
    }
}

fn text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Text>::deserialize(from)?.map(String::from))
}

const fn one() -> u32 {
    1
}

/// Reads a YAML list of endpoints; JSON is YAML.
pub fn read_yaml(text: &str) -> Result<Vec<Member>, String> {
    // A file cut to nothing is YAML too (null), but nobody meant it as an empty list.
    let values = yaml::values("the list", text)?;
    let written: Option<Vec<Written>> = serde_json::from_value(values).map_err(|error| error.to_string())?;
    members(written.ok_or("there is no list; write `[]` for none")?)
}

/// Reads a JSON list of endpoints.
pub fn read_json(bytes: &[u8]) -> Result<Vec<Member>, String> {
    let written: Vec<Written> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    members(written)
}

fn members(written: Vec<Written>) -> Result<Vec<Member>, String> {
    if written.len() > MAX_MEMBERS {
        return Err(format!(
            "{} endpoints, at most {MAX_MEMBERS} are accepted",
            written.len()
        ));
    }
    let mut members = Vec::with_capacity(written.len());
    for (at, entry) in written.into_iter().enumerate() {
        members.push(entry.into_member().map_err(|why| format!("[{at}]: {why}"))?);
    }
    let count = members.len();
    normalize(&mut members);
    if members.len() < count {
        return Err("an address is listed twice".into());
    }
    Ok(members)
}

impl Written {
    fn into_member(self) -> Result<Member, String> {
        match self {
            Self::Short(text) => Ok(Member::new(address(&text)?)),
            Self::Long(long) => Ok(Member {
                address: address(&long.address)?,
                host: long.host.map(Arc::from),
                weight: long.weight,
                zone: long.zone.map(Arc::from),
                priority: long.priority,
                labels: Arc::new(
                    long.labels
                        .into_iter()
                        .map(|(name, text)| (name, text.into()))
                        .collect(),
                ),
            }),
        }
    }
}

/// `10.0.0.1:80`, `[::1]:80` or `unix:/run/app.sock`.
fn address(text: &str) -> Result<SocketAddress, String> {
    let written: Address = text.parse().map_err(|error| format!("`{text}`: {error}"))?;
    match (&written, written.socket_addr()) {
        (Address::Unix(path), _) if path.is_absolute() => Ok(SocketAddress::Unix(path.as_path().into())),
        (Address::Unix(_), _) => Err(format!("`{text}`: a Unix socket needs an absolute path")),
        (_, Some(address)) if address.port() == 0 => Err(format!("`{text}`: port 0 cannot be connected to")),
        (_, Some(address)) => Ok(SocketAddress::Ip(address)),
        (Address::Tcp { .. }, None) => Err(format!(
            "`{text}` is a name; names are resolved in `endpoints` and `discovery.dns` only"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_entries_read_alike_from_yaml_and_json() {
        let yaml = "- 10.0.0.2:80\n- address: 10.0.0.1:80\n  weight: 3\n  zone: b\n  priority: 1\n  host: app.example\n  labels: {rack: r1}\n- unix:/run/app.sock\n";
        let json = br#"["10.0.0.2:80", {"address": "10.0.0.1:80", "weight": 3, "zone": "b", "priority": 1,
            "host": "app.example", "labels": {"rack": "r1"}}, "unix:/run/app.sock"]"#;
        let read = read_yaml(yaml).unwrap();
        assert_eq!(read, read_json(json).unwrap());
        assert_eq!(read, read_yaml(std::str::from_utf8(json).unwrap()).unwrap());
        assert_eq!(read.len(), 3);
        assert_eq!(
            (read[0].weight, read[0].priority, read[0].zone.as_deref()),
            (3, 1, Some("b"))
        );
        assert_eq!(read[0].host.as_deref(), Some("app.example"));
        assert_eq!(
            read[2].address,
            SocketAddress::Unix(std::path::Path::new("/run/app.sock").into())
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("[\"app:8080\"]", "names are resolved"),
            ("[\"10.0.0.1:0\"]", "port 0"),
            ("[\"unix:app.sock\"]", "absolute"),
            ("[\"10.0.0.1:80\", \"10.0.0.1:80\"]", "twice"),
            ("[{\"address\": \"10.0.0.1:80\", \"zone\": []}]", "expected"),
            (
                "[{\"address\": \"10.0.0.1:80\", \"wieght\": 1}]",
                "expected an address or an object",
            ),
            ("{\"endpoints\": []}", "sequence"),
        ] {
            let error = read_json(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            read_yaml(text).unwrap_err();
        }
    }

    #[test]
    fn yaml_says_where_it_is_wrong_and_numbers_may_be_meant_as_text() {
        let error = read_yaml("- address: 10.0.0.1:80\n  address: 10.0.0.2:80\n").unwrap_err();
        assert_eq!(error, "line 2, column 3: `address` stands here a second time");
        let error = read_yaml("- 10.0.0.1:80\n- [\n").unwrap_err();
        assert!(error.starts_with("line "), "{error}");
        let text =
            "- { address: 10.0.0.1:80, zone: 1, weight: 2, labels: { rack: 05, new: true, of: '7' } }\n";
        let read = &read_yaml(text).unwrap()[0];
        assert_eq!((read.zone.as_deref(), read.weight), (Some("1"), 2));
        let labels: Vec<_> = read
            .labels
            .iter()
            .map(|(name, text)| (&**name, &**text))
            .collect();
        assert_eq!(labels, [("new", "true"), ("of", "7"), ("rack", "05")]);
    }

    #[test]
    fn an_empty_list_is_a_list_and_an_empty_file_is_not() {
        assert_eq!(read_yaml("[]").unwrap(), Vec::new());
        read_yaml("").unwrap_err();
        read_json(b"").unwrap_err();
    }
}
