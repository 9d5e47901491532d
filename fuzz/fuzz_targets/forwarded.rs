//! Forwarding fields: nobody but a trusted proxy can say who the client is, whatever stands left of what it wrote.
#![no_main]

mod http1;
mod message;
mod wire;

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderValue};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use message::forwarded::{Added, Hop, Scheme, Trust, TrustedProxies};
use message::is_field_value;

const NAMES: [&str; 8] = [
    "x-forwarded-for",
    "x-forwarded-for",
    "forwarded",
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "host",
];

fn ip(u: &mut Unstructured<'_>) -> Result<IpAddr> {
    Ok(match u.int_in_range(0..=3)? {
        0 => IpAddr::from([10, 0, 0, u.arbitrary()?]),
        1 => IpAddr::from(u.arbitrary::<[u8; 4]>()?),
        2 => IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, u.arbitrary()?]),
        _ => IpAddr::from(u.arbitrary::<[u16; 8]>()?),
    })
}

/// The fields of a request as the service gets them: those that came and those that we add.
fn write(hop: &Hop, headers: &mut HeaderMap, host: &HeaderValue) {
    let mut added = Added::new();
    hop.write(headers, &mut added, host);
    headers.extend(added);
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let trusted =
        TrustedProxies::new(["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network")));
    let proxy: IpAddr = [10, 0, 0, 1].into();
    let (peer, client) = (ip(u)?, ip(u)?);
    let host: String = String::from_utf8_lossy(u.arbitrary::<&[u8]>()?)
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-._~:[]".contains(*c))
        .collect();
    let host = HeaderValue::try_from(host).expect("only what hosts are made of");
    let scheme = *u.choose(&[Scheme::Http, Scheme::Https])?;
    let sent = message::fields(u, &NAMES, 5)?;

    // A stranger is who it is, and nothing of what it said goes on.
    let found = trusted.client_ip(peer, &sent);
    if !trusted.contains(peer) {
        assert_eq!(found, peer.to_canonical());
        let mut headers = sent.clone();
        write(
            &Hop::new(peer, scheme, 443, Trust::Untrusted),
            &mut headers,
            &host,
        );
        let said: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        assert_eq!(said, [peer.to_canonical().to_string().as_str()]);
        assert!(!headers.contains_key(header::FORWARDED) && !headers.contains_key("x-real-ip"));
    }

    // What a hop in front of us wrote names its client, however hostile the rest: in a line of its own, and behind a
    // comma in the line that it found.
    for own_line in [true, false] {
        for field in ["x-forwarded-for", "forwarded"] {
            let mut headers = HeaderMap::new();
            headers.extend(
                sent.get_all(field)
                    .iter()
                    .map(|v| (header::HeaderName::from_static(field), v.clone())),
            );
            if headers.is_empty() {
                headers.insert(field, HeaderValue::from_static("unknown"));
            }
            write(&Hop::new(client, scheme, 80, Trust::Trusted), &mut headers, &host);
            let other = if field == "forwarded" {
                "x-forwarded-for"
            } else {
                "forwarded"
            };
            headers.remove(other);
            if !own_line {
                let lines: Vec<&[u8]> = headers.get_all(field).iter().map(HeaderValue::as_bytes).collect();
                let joined =
                    HeaderValue::from_bytes(&lines.join(&b", "[..])).expect("values joined are a value");
                headers.insert(field, joined);
            }
            for (name, value) in &headers {
                assert!(is_field_value(value.as_bytes()), "{name}: {value:?}");
            }
            let found = trusted.client_ip(proxy, &headers);
            if !trusted.contains(client) {
                assert_eq!(found, client.to_canonical(), "{headers:?}");
            }
        }
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _enough = run(&mut Unstructured::new(input));
});
