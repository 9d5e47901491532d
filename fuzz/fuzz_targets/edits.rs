//! Header edits: whatever the templates and whatever a client sent, every field that comes out can be carried by every
//! version of HTTP, and nothing that frames a message is touched.
#![no_main]

mod http1;
mod message;
mod wire;

use http::header::HeaderMap;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use message::edits::HeaderEdits;
use message::is_field_value;
use message::template::{Field, Template, Values};

const NAMES: [&str; 12] = [
    "x-a",
    "x-b",
    "Set-Cookie",
    "host",
    "content-length",
    "Transfer-Encoding",
    "connection",
    "te",
    "upgrade",
    "trailer",
    "authorization",
    "via",
];
const KEPT: [&str; 7] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "upgrade",
    "trailer",
];

/// Text as an operator might write it: pieces of templates between arbitrary ones.
fn text(u: &mut Unstructured<'_>) -> Result<String> {
    let mut out = String::new();
    for _ in 0..u.int_in_range(0..=4)? {
        match u.int_in_range(0..=3)? {
            0 => out.push_str(u.arbitrary()?),
            1 => out.push_str(u.choose(&["{", "}", "{{", " ", "\t", "{host", "\r\n", "\u{e9}", "{nobody}"])?),
            _ => {
                out.push('{');
                out.push_str(u.choose(&Field::ALL)?.name());
                out.push('}');
            }
        }
    }
    Ok(out)
}

fn pairs(u: &mut Unstructured<'_>) -> Result<Vec<(String, String)>> {
    let mut list = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        let name = if u.ratio(7, 8)? {
            (*u.choose(&NAMES)?).to_owned()
        } else {
            u.arbitrary()?
        };
        list.push((name, text(u)?));
    }
    Ok(list)
}

/// What a template renders to, found by replacing names one after the other.
fn replaced(text: &str, values: &Values<'_>) -> String {
    let ip = values.client_ip.to_string();
    let mut rest = text;
    let mut out = String::new();
    'next: while let Some(character) = rest.chars().next() {
        for field in Field::ALL {
            let name = format!("{{{}}}", field.name());
            if let Some(after) = rest.strip_prefix(&name) {
                out.push_str(match field {
                    Field::ClientIp => &ip,
                    Field::Host => values.host,
                    Field::Path => values.path,
                    Field::RequestId => values.request_id,
                    Field::Route => values.route,
                    Field::Cluster => values.cluster,
                    Field::Endpoint => values.endpoint,
                    Field::TlsPeer => values.tls_peer,
                });
                rest = after;
                continue 'next;
            }
        }
        out.push(character);
        rest = &rest[character.len_utf8()..];
    }
    out
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let (host, path, id, route): (&str, &str, &str, &str) =
        (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?, u.arbitrary()?);
    let (cluster, endpoint, tls_peer): (&str, &str, &str) = (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?);
    let values = Values {
        client_ip: std::net::IpAddr::from(u.arbitrary::<[u8; 16]>()?),
        host,
        path,
        request_id: id,
        route,
        cluster,
        endpoint,
        tls_peer,
    };
    let written = text(u)?;
    if let Ok(template) = Template::compile(&written) {
        assert_eq!(
            template.render(&values),
            replaced(&written, &values),
            "{written:?}"
        );
        if let Some(literal) = template.as_literal() {
            assert_eq!(literal, written);
        }
    }

    let (set, add) = (pairs(u)?, pairs(u)?);
    let mut remove: Vec<String> = Vec::new();
    for _ in 0..u.int_in_range(0..=2)? {
        remove.push((*u.choose(&NAMES)?).to_owned());
    }
    let mut headers = message::fields(
        u,
        &["x-a", "x-b", "set-cookie", "host", "content-length", "via"],
        6,
    )?;
    let edits = HeaderEdits::compile(set.clone(), add, remove);
    let Ok(edits) = edits else { return Ok(()) };
    let before = headers.clone();
    edits.apply(&mut headers, &values);
    for (name, value) in &headers {
        assert!(is_field_value(value.as_bytes()), "{name}: {value:?}");
    }
    let of = |headers: &HeaderMap, name| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
    for name in KEPT {
        assert_eq!(of(&before, name), of(&headers, name), "{name} was edited");
    }
    // Twice is not once for `add`, but what `set` says is there.
    for (name, _) in set {
        assert!(headers.contains_key(name.as_str()));
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _enough = run(&mut Unstructured::new(input));
});
