//! Header edits: `remove`, then `set`, then `add`, in that order whatever the order in the file.
//!
//! So a field can be removed and given anew, and what is added is never removed again. Fields that say how a message
//! is framed, or that belong to one hop, cannot be edited: the proxy writes them. `host` is changed with
//! `rewrite.host`, because it also decides what an upstream connection is asked for.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::template::{Field, Template, UnknownField, Values};

/// Edits of one direction of one route, compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, Value)]>,
    add: Box<[(HeaderName, Value)]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Fixed(HeaderValue),
    Filled(Template),
}

/// Why an edit is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Not a field name.
    #[error("{0:?} is not a header name")]
    Name(String),
    /// A field that only the proxy writes.
    #[error("{0} says how the message is framed or which connection carries it; only the proxy writes it")]
    Framing(HeaderName),
    /// `host`.
    #[error("the host is changed with `rewrite: {{ host: ... }}`")]
    Host,
    /// Control characters.
    #[error("the value of {0} has characters that a header cannot have")]
    Value(HeaderName),
    /// A template that names nothing.
    #[error(transparent)]
    Field(#[from] UnknownField),
}

impl HeaderEdits {
    /// Compiles edits as written.
    ///
    /// # Errors
    /// The first edit that is not acceptable.
    pub fn compile<N: AsRef<str>, V: AsRef<str>>(
        set: impl IntoIterator<Item = (N, V)>,
        add: impl IntoIterator<Item = (N, V)>,
        remove: impl IntoIterator<Item = N>,
    ) -> Result<Self, EditError> {
        Ok(Self {
            remove: remove
                .into_iter()
                .map(|name| editable(name.as_ref()))
                .collect::<Result<_, _>>()?,
            set: set
                .into_iter()
                .map(|(n, v)| one(n.as_ref(), v.as_ref()))
                .collect::<Result<_, _>>()?,
            add: add
                .into_iter()
                .map(|(n, v)| one(n.as_ref(), v.as_ref()))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Whether a value names this field, so that edits must wait until it is known.
    pub fn uses(&self, field: Field) -> bool {
        self.set
            .iter()
            .chain(&self.add)
            .any(|(_, value)| matches!(value, Value::Filled(template) if template.uses(field)))
    }

    /// Makes the edits.
    pub fn apply(&self, headers: &mut HeaderMap, values: &Values<'_>) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.fill(values));
        }
        for (name, value) in &self.add {
            headers.append(name, value.fill(values));
        }
    }
}

impl Value {
    fn fill(&self, values: &Values<'_>) -> HeaderValue {
        match self {
            Self::Fixed(value) => value.clone(),
            Self::Filled(template) => header_value(&template.render(values)),
        }
    }
}

/// Text as a field value. What no field can hold (a control character in a certificate's name) becomes `?`, and blanks
/// at the ends, as a field that stands for nothing leaves them behind, are no part of it (RFC 9110 section 5.5).
pub(super) fn header_value(text: &str) -> HeaderValue {
    let text = text.trim_matches([' ', '\t']);
    HeaderValue::from_str(text).unwrap_or_else(|_has_control_characters| {
        let cleaned: Vec<u8> = text
            .bytes()
            .map(|byte| {
                if byte < b' ' && byte != b'\t' || byte == 0x7f {
                    b'?'
                } else {
                    byte
                }
            })
            .collect();
        HeaderValue::from_bytes(&cleaned).unwrap_or(HeaderValue::from_static(""))
    })
}

fn one(name: &str, text: &str) -> Result<(HeaderName, Value), EditError> {
    let name = editable(name)?;
    let template = Template::compile(text)?;
    // Also the text between the fields must be fit for a header.
    let Ok(fixed) = HeaderValue::from_str(text.trim_matches([' ', '\t'])) else {
        return Err(EditError::Value(name));
    };
    let value = if template.as_literal().is_some() {
        Value::Fixed(fixed)
    } else {
        Value::Filled(template)
    };
    Ok((name, value))
}

fn editable(written: &str) -> Result<HeaderName, EditError> {
    let Ok(name) = HeaderName::from_bytes(written.as_bytes()) else {
        return Err(EditError::Name(written.to_owned()));
    };
    match name.as_str() {
        "host" => Err(EditError::Host),
        "connection" | "content-length" | "expect" | "http2-settings" | "keep-alive" | "proxy-connection"
        | "te" | "trailer" | "transfer-encoding" | "upgrade" => Err(EditError::Framing(name)),
        _ => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::values;
    use super::*;

    #[test]
    fn removals_come_first_and_additions_last() {
        let edits = HeaderEdits::compile(
            [("X-Request-Id", "{request_id}"), ("x-fixed", "1")],
            [("x-added", "{cluster}/{endpoint}"), ("x-gone", "new")],
            ["x-gone", "x-debug"],
        )
        .unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-gone", "old"),
            ("x-debug", "1"),
            ("x-added", "0"),
            ("x-fixed", "0"),
            ("x-fixed", "00"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        edits.apply(&mut headers, &values());
        assert_eq!(headers["x-request-id"], "01J9Z3");
        assert_eq!(headers.get_all("x-fixed").iter().collect::<Vec<_>>(), ["1"]);
        assert_eq!(
            headers.get_all("x-added").iter().collect::<Vec<_>>(),
            ["0", "ledger/10.0.0.11:8080"]
        );
        assert_eq!(headers.get_all("x-gone").iter().collect::<Vec<_>>(), ["new"]);
        assert!(!headers.contains_key("x-debug"));
        assert!(edits.uses(Field::Endpoint) && !edits.uses(Field::Host) && !edits.is_empty());
    }

    #[test]
    fn what_only_the_proxy_writes_cannot_be_edited() {
        let set = |name: &'static str, value| HeaderEdits::compile([(name, value)], [], []).unwrap_err();
        assert!(matches!(set("Content-Length", "1"), EditError::Framing(_)));
        assert!(matches!(
            set("transfer-encoding", "chunked"),
            EditError::Framing(_)
        ));
        assert_eq!(set("Host", "x"), EditError::Host);
        assert_eq!(set("a b", "x"), EditError::Name("a b".into()));
        assert!(matches!(set("x", "a\r\nb: c"), EditError::Value(_)));
        assert!(matches!(set("x", "{nobody}"), EditError::Field(_)));
        assert_eq!(
            HeaderEdits::compile([], [("", "")], ["connection"]).unwrap_err(),
            EditError::Framing(http::header::CONNECTION)
        );
    }

    #[test]
    fn no_value_begins_or_ends_with_a_blank() {
        // RFC 9110 section 5.5: such blanks are not part of a value; RFC 9113 section 8.2.1: a peer resets the stream.
        let edits = HeaderEdits::compile(
            [("x-fixed", " 1\t"), ("x-where", "{cluster} {endpoint}")],
            [("x-peer", "\t{tls_peer}")],
            [],
        )
        .unwrap();
        let mut headers = HeaderMap::new();
        edits.apply(
            &mut headers,
            &Values {
                endpoint: "",
                tls_peer: " CN=a ",
                ..values()
            },
        );
        assert_eq!(headers["x-fixed"], "1");
        assert_eq!(headers["x-where"], "ledger");
        assert_eq!(headers["x-peer"], "CN=a");
    }

    #[test]
    fn a_value_from_outside_cannot_start_a_new_line() {
        let edits = HeaderEdits::compile([("x-peer", "{tls_peer}")], [], []).unwrap();
        let mut headers = HeaderMap::new();
        edits.apply(
            &mut headers,
            &Values {
                tls_peer: "CN=a\r\nevil: 1",
                ..values()
            },
        );
        assert_eq!(headers["x-peer"], "CN=a??evil: 1");
    }
}
