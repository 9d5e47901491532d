//! Templates: text with `{client_ip}` and the like in it, filled in for each request.
//!
//! A name in braces must be one of the eight; any other brace is just text, so that a JSON body needs no escaping. The
//! text is cut up once, when the configuration is compiled.

use std::net::IpAddr;

/// Something that a template may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `{client_ip}`: the client, after trusted proxies.
    ClientIp,
    /// `{host}`: the authority that the client asked for, port included.
    Host,
    /// `{path}`: the normalised path, without the query.
    Path,
    /// `{request_id}`.
    RequestId,
    /// `{route}`: the name of the route.
    Route,
    /// `{cluster}`: the name of the cluster; empty before one is chosen.
    Cluster,
    /// `{endpoint}`: the address of the endpoint; empty before one is chosen.
    Endpoint,
    /// `{tls_peer}`: the identity in the client's certificate; empty without one.
    TlsPeer,
}

impl Field {
    /// All of them, for messages and completion.
    pub const ALL: [Self; 8] = [
        Self::ClientIp,
        Self::Host,
        Self::Path,
        Self::RequestId,
        Self::Route,
        Self::Cluster,
        Self::Endpoint,
        Self::TlsPeer,
    ];

    /// As written between the braces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClientIp => "client_ip",
            Self::Host => "host",
            Self::Path => "path",
            Self::RequestId => "request_id",
            Self::Route => "route",
            Self::Cluster => "cluster",
            Self::Endpoint => "endpoint",
            Self::TlsPeer => "tls_peer",
        }
    }
}

/// What the fields stand for in one request. What is not known (yet) is empty.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of `Field`")]
pub struct Values<'a> {
    pub client_ip: IpAddr,
    pub host: &'a str,
    pub path: &'a str,
    pub request_id: &'a str,
    pub route: &'a str,
    pub cluster: &'a str,
    pub endpoint: &'a str,
    pub tls_peer: &'a str,
}

/// Compiled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Box<[Part]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Field(Field),
}

/// A name in braces that stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown template field {{{name}}}; there are {{client_ip}}, {{host}}, {{path}}, {{request_id}}, {{route}}, \
     {{cluster}}, {{endpoint}}, {{tls_peer}}"
)]
pub struct UnknownField {
    /// What stands between the braces.
    pub name: String,
    /// Where the opening brace is, in bytes.
    pub at: usize,
}

impl Template {
    /// Cuts a text up.
    ///
    /// # Errors
    /// When a name in braces (lower-case letters, digits and `_`) is not a field.
    pub fn compile(text: &str) -> Result<Self, UnknownField> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(found) = text[at..].find('{') {
            let open = at + found;
            let inside = &text[open + 1..];
            let length = inside.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
            let name = length
                .filter(|length| inside[*length..].starts_with('}'))
                .map(|length| &inside[..length]);
            match name.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())) {
                None => {
                    literal.push_str(&text[at..=open]);
                    at = open + 1;
                }
                Some(name) => {
                    let field = Field::ALL.into_iter().find(|field| field.name() == name);
                    let field = field.ok_or_else(|| UnknownField {
                        name: name.to_owned(),
                        at: open,
                    })?;
                    literal.push_str(&text[at..open]);
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal).into()));
                    }
                    parts.push(Part::Field(field));
                    at = open + name.len() + 2;
                }
            }
        }
        literal.push_str(&text[at..]);
        if !literal.is_empty() {
            parts.push(Part::Text(literal.into()));
        }
        Ok(Self(parts.into()))
    }

    /// The text, when there is nothing to fill in.
    pub fn as_literal(&self) -> Option<&str> {
        match &*self.0 {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Whether a field occurs: one that is known only after an endpoint was chosen must be filled in late.
    pub fn uses(&self, field: Field) -> bool {
        self.0.contains(&Part::Field(field))
    }

    /// Fills it in.
    pub fn render(&self, values: &Values<'_>) -> String {
        let mut out = String::with_capacity(64);
        self.render_into(values, &mut out);
        out
    }

    /// Fills it in, appending.
    pub fn render_into(&self, values: &Values<'_>, out: &mut String) {
        for part in &self.0 {
            let text = match part {
                Part::Text(text) => text,
                Part::Field(Field::ClientIp) => {
                    use std::fmt::Write as _;
                    // Writing into a String cannot fail.
                    let _infallible = write!(out, "{}", values.client_ip);
                    continue;
                }
                Part::Field(Field::Host) => values.host,
                Part::Field(Field::Path) => values.path,
                Part::Field(Field::RequestId) => values.request_id,
                Part::Field(Field::Route) => values.route,
                Part::Field(Field::Cluster) => values.cluster,
                Part::Field(Field::Endpoint) => values.endpoint,
                Part::Field(Field::TlsPeer) => values.tls_peer,
            };
            out.push_str(text);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::message) fn values() -> Values<'static> {
        Values {
            client_ip: [192, 0, 2, 7].into(),
            host: "shop.example",
            path: "/orders/7",
            request_id: "01J9Z3",
            route: "orders",
            cluster: "ledger",
            endpoint: "10.0.0.11:8080",
            tls_peer: "spiffe://a/b",
        }
    }

    #[test]
    fn every_field_is_filled_in() {
        let all: String = Field::ALL
            .iter()
            .map(|field| format!("{{{}}} ", field.name()))
            .collect();
        let rendered = Template::compile(&all).unwrap().render(&values());
        assert_eq!(
            rendered,
            "192.0.2.7 shop.example /orders/7 01J9Z3 orders ledger 10.0.0.11:8080 spiffe://a/b "
        );
    }

    #[test]
    fn other_braces_are_text() {
        for text in [
            "",
            "plain",
            r#"{"status":"ok","a":{}}"#,
            "{",
            "}{",
            "{ host }",
            "{Host}",
            "{host",
            "{1}",
            "{_}",
            "{{}}",
        ] {
            let template = Template::compile(text).unwrap();
            assert_eq!(template.as_literal(), Some(text));
            assert_eq!(template.render(&values()), text);
        }
        let json = Template::compile(r#"{"id":"{request_id}","r":{{route}}}"#).unwrap();
        assert_eq!(json.render(&values()), r#"{"id":"01J9Z3","r":{orders}}"#);
        assert!(json.uses(Field::Route) && !json.uses(Field::Host));
        assert_eq!(json.as_literal(), None);
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_place() {
        let error = Template::compile("a {hosts} b").unwrap_err();
        assert_eq!(
            error,
            UnknownField {
                name: "hosts".into(),
                at: 2
            }
        );
        assert!(
            error
                .to_string()
                .starts_with("unknown template field {hosts}; there are {client_ip}")
        );
    }

    proptest! {
        #[test]
        fn text_without_names_renders_as_itself(text in "[^a-z]{0,40}") {
            prop_assert_eq!(Template::compile(&text).unwrap().render(&values()), text);
        }

        #[test]
        fn no_text_can_disturb_it(text in "([{}a-z_é]|[{]host[}]){0,30}") {
            if let Ok(template) = Template::compile(&text) {
                drop(template.render(&values()));
            }
        }
    }
}
