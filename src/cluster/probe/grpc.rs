//! The health protocol of gRPC (`grpc.health.v1.Health/Check`): one call on a connection of its own.
//!
//! The two messages have one field each, so they are written and read here by hand. The connection is driven by the
//! check itself: when that ends, in whatever way, nothing of it is left.

use std::future::poll_fn;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};

use super::{Checked, MAX_BODY, Outcome};
use crate::message::grpc::Code;
use crate::net::Io;

/// Asks whether a service serves; the empty name stands for the whole server.
pub(super) async fn ask(io: Io, host: &str, is_tls: bool, service: &str) -> Checked {
    match call(io, host, is_tls, service).await {
        Ok(outcome) | Err(outcome) => outcome.into(),
    }
}

async fn call(io: Io, host: &str, is_tls: bool, service: &str) -> Result<Outcome, Outcome> {
    let request = request(host, is_tls, service)?;
    let (mut send, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .max_header_list_size(16 * 1024)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(broken)?;
    let exchange = async {
        poll_fn(|cx| send.poll_ready(cx)).await.map_err(broken)?;
        let (answer, mut body) = send.send_request(request, false).map_err(broken)?;
        body.send_data(question(service), true).map_err(broken)?;
        let (head, mut content) = answer.await.map_err(broken)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(unexpected(format!("status {}", head.status.as_u16())));
        }
        if let Some(code) = Code::of(&head.headers).filter(|code| *code != Code::OK) {
            return Err(refused(code));
        }
        let mut message = BytesMut::new();
        while let Some(data) = content.data().await {
            let data = data.map_err(broken)?;
            content
                .flow_control()
                .release_capacity(data.len())
                .map_err(broken)?;
            message.extend_from_slice(&data);
            if message.len() > MAX_BODY {
                return Err(unexpected("an answer longer than 4 KiB".to_owned()));
            }
        }
        let trailers = content.trailers().await.map_err(broken)?.unwrap_or_default();
        verdict(&message, &trailers)
    };
    tokio::pin!(exchange);
    tokio::select! {
        outcome = &mut exchange => outcome,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(broken(error)),
        },
    }
}

fn request(host: &str, is_tls: bool, service: &str) -> Result<Request<()>, Outcome> {
    let scheme = if is_tls { "https" } else { "http" };
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(host)
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()
        .map_err(|_error| Outcome::Broken(format!("`{host}` cannot be asked for `{service}`").into()))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    for (name, value) in [
        (CONTENT_TYPE, "application/grpc"),
        (TE, "trailers"),
        (USER_AGENT, "bellwether-probe"),
    ] {
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    Ok(request)
}

/// `message HealthCheckRequest { string service = 1; }` with the five bytes of a gRPC message before it.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(STRING_1);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(FRAME + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&message);
    framed.freeze()
}

fn verdict(message: &[u8], trailers: &HeaderMap) -> Result<Outcome, Outcome> {
    match Code::of(trailers) {
        Some(Code::OK) => {}
        Some(code) => return Err(refused(code)),
        None => return Err(unexpected("an answer without a gRPC status".to_owned())),
    }
    match status(message) {
        Some(SERVING) => Ok(Outcome::Pass),
        Some(0) => Err(unexpected("it does not know how it is: UNKNOWN".to_owned())),
        Some(2) => Err(unexpected("NOT_SERVING".to_owned())),
        Some(3) => Err(unexpected("SERVICE_UNKNOWN".to_owned())),
        Some(other) => Err(unexpected(format!("serving status {other}"))),
        None => Err(unexpected("the answer is no HealthCheckResponse".to_owned())),
    }
}

/// `message HealthCheckResponse { enum ServingStatus { … } ServingStatus status = 1; }`; an absent field is 0, fields that
/// we do not know are passed over.
fn status(framed: &[u8]) -> Option<u64> {
    let (head, mut message) = framed.split_at_checked(FRAME)?;
    let announced = u32::from_be_bytes(head.get(1..)?.try_into().ok()?);
    if head.first() != Some(&0) || usize::try_from(announced) != Ok(message.len()) {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn broken(error: h2::Error) -> Outcome {
    Outcome::Broken(error.to_string().into())
}

fn unexpected(what: String) -> Outcome {
    Outcome::Unexpected(what.into())
}

fn refused(code: Code) -> Outcome {
    let hint = match code.name() {
        "UNIMPLEMENTED" => ": it does not speak the health protocol",
        "NOT_FOUND" => ": it does not know the service",
        _ => "",
    };
    unexpected(format!("{}{hint}", code.name()))
}

/// Field 1, a string.
const STRING_1: u8 = 0x0a;
const SERVING: u64 = 1;
/// Flag and length before a message.
const FRAME: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn trailers(code: &'static str) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(code));
        trailers
    }

    #[test]
    fn the_question_is_written_as_protobuf_does() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = "x".repeat(300);
        assert_eq!(&question(&long)[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn only_serving_passes() {
        let serving = [0, 0, 0, 0, 2, 8, 1];
        assert_eq!(verdict(&serving, &trailers("0")), Ok(Outcome::Pass));
        assert!(verdict(&serving, &trailers("13")).is_err());
        assert!(verdict(&serving, &HeaderMap::new()).is_err());
        for other in [
            &[0, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 2, 8, 2],
            &[0, 0, 0, 0, 2, 8, 3],
        ] {
            assert!(verdict(other, &trailers("0")).is_err(), "{other:?}");
        }
    }

    #[test]
    fn unknown_fields_are_passed_over_and_nonsense_is_none() {
        let with_more = [0, 0, 0, 0, 9, 0x12, 3, 1, 2, 3, 0x18, 0x80, 0x01, 8];
        assert_eq!(status(&with_more), None, "cut off");
        let with_more = [0, 0, 0, 0, 10, 0x12, 3, 1, 2, 3, 0x18, 0x80, 0x01, 8, 1];
        assert_eq!(status(&with_more), Some(1));
        for wrong in [
            &b""[..],
            &[0, 0, 0, 0],
            &[1, 0, 0, 0, 2, 8, 1],
            &[0, 0, 0, 0, 3, 8, 1],
            &[0, 0, 0, 0, 1, 0x0b],
            &[0, 0, 0, 0, 3, 0x12, 0xff, 0x7f],
        ] {
            assert_eq!(status(wrong), None, "{wrong:?}");
        }
    }
}
