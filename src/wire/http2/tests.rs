//! HTTP/2 connections: a well-behaved peer from the h2 crate, and others that write frames by hand.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Dice;
use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use super::client::{self, Answer, Connection, Exchange, ExchangeError};
use super::server::{self, Ended, Settings};
use crate::net::memory;
use crate::wire::testing::{AnyBody, Raw, Script, Step, collect, reply, run, secs, service, sleep, text};
use crate::wire::{BodyError, Drain, Inbound, RequestBody, Service, Toolbox};

fn settings() -> Settings {
    Settings {
        max_streams: 100,
        header_list: 64 * 1024,
        headers: 100,
        head: secs(5),
        body_idle: Some(secs(30)),
        keep_alive: secs(60),
        max_age: None,
        max_requests: None,
    }
}

struct Served {
    raw: Raw,
    drain: Rc<Drain>,
    ended: JoinHandle<Ended>,
}

fn serve<S: Service>(tools: &Toolbox, service: &Rc<S>) -> Served {
    let (near, far) = memory::pair(64 * 1024);
    let drain = Rc::<Drain>::default();
    let (tools, service, joined) = (tools.clone(), Rc::clone(service), Rc::clone(&drain));
    let ended = tokio::task::spawn_local(async move {
        let mut dice = Dice::new(1);
        server::serve(far, service, Arc::new(settings()), tools, &joined, &mut dice).await
    });
    Served {
        raw: Raw { io: near },
        drain,
        ended,
    }
}

fn get(method: Method, path: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = format!("http://x{path}").parse().unwrap();
    request
}

async fn last<B>(exchange: &mut Exchange<B>) -> Result<http::Response<()>, ExchangeError>
where
    B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin,
{
    loop {
        if let Answer::Final(head) = poll_fn(|cx| exchange.poll_answer(cx)).await? {
            return Ok(head);
        }
    }
}

struct Content<'a, B>(&'a mut Exchange<B>);

impl<B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin> http_body::Body for Content<'_, B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        self.0.poll_frame(cx)
    }
}

async fn ask(
    connection: &Connection,
    method: Method,
    body: AnyBody,
) -> Result<(StatusCode, HeaderMap, Bytes), ExchangeError> {
    let mut exchange = Exchange::start(connection, get(method, "/"), body, false)?;
    let head = last(&mut exchange).await?;
    let content = collect(&mut Content(&mut exchange))
        .await
        .map_err(ExchangeError::Request)?;
    Ok((head.status(), head.headers().clone(), content))
}

fn empty() -> AnyBody {
    Box::pin(RequestBody::Empty)
}

fn echo() -> Rc<impl Service> {
    service(|inbound: Inbound| async move { reply(200, Box::pin(inbound.request.into_body())) })
}

#[test]
fn content_and_trailers_go_both_ways_at_once() {
    run(|tools| async move {
        let served = serve(&tools, &echo());
        let connection = client::handshake(served.raw.io).await.unwrap();
        let steps = (0..200).flat_map(|at| {
            [
                Step::Wait(Duration::from_millis(at % 3 * 10)),
                Step::Data(vec![b'x'; 5000].into()),
            ]
        });
        let trailers = HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("1"))]);
        let body = Script::new(&tools, steps.chain([Step::Trailers(trailers)])).boxed();
        let (status, headers, content) = ask(&connection, Method::POST, body).await.unwrap();
        assert_eq!((status.as_u16(), content.len()), (200, 1_000_000));
        assert!(headers.contains_key(header::DATE));
        assert_eq!((connection.active(), connection.exchanges()), (0, 1));
        drop(connection);
        assert!(matches!(served.ended.await.unwrap(), Ended::Cleanly));
    });
}

#[test]
fn answers_without_content_have_none() {
    run(|tools| async move {
        let answers = service(|inbound: Inbound| async move {
            let mut reply = text(
                if inbound.request.method() == Method::PUT {
                    204
                } else {
                    200
                },
                "hello",
            );
            if inbound.request.method() == Method::PUT {
                reply
                    .head
                    .headers
                    .insert(header::CONTENT_LENGTH, HeaderValue::from(5));
            }
            reply
        });
        let served = serve(&tools, &answers);
        let connection = client::handshake(served.raw.io).await.unwrap();
        let (_, headers, content) = ask(&connection, Method::HEAD, empty()).await.unwrap();
        assert_eq!(
            (headers[header::CONTENT_LENGTH].as_bytes(), content.len()),
            (&b"5"[..], 0)
        );
        let (status, headers, content) = ask(&connection, Method::PUT, empty()).await.unwrap();
        assert_eq!((status.as_u16(), content.len()), (204, 0));
        assert!(!headers.contains_key(header::CONTENT_LENGTH));
        assert_eq!(ask(&connection, Method::GET, empty()).await.unwrap().2, "hello");
    });
}

/// An h2 client whose windows open only by hand.
async fn narrow(served: Raw) -> h2::client::SendRequest<Bytes> {
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(1000)
        .handshake::<_, Bytes>(served.io)
        .await
        .unwrap();
    tokio::task::spawn_local(async move { drop(connection.await) });
    send
}

#[test]
fn a_reader_that_stops_is_cut_off_and_a_slow_one_is_not() {
    run(|tools| async move {
        let polled = Rc::new(Cell::new(0));
        let (script, count) = (tools.clone(), Rc::clone(&polled));
        let large = service(move |_: Inbound| {
            let (script, count) = (script.clone(), Rc::clone(&count));
            async move {
                let steps = std::iter::repeat_with(move || {
                    count.set(count.get() + 1);
                    Step::Data(vec![b'x'; 1000].into())
                });
                let mut reply = reply(
                    200,
                    Box::pin(Lazy {
                        steps: Box::new(steps.take(50)),
                        _tools: script,
                    }),
                );
                reply.idle = Some(secs(10));
                reply
            }
        });
        let mut send = narrow(serve(&tools, &large).raw).await;
        let (response, _) = send.send_request(get(Method::GET, "/"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut count = 0;
        while let Some(data) = body.data().await {
            let length = data.unwrap().len();
            count += length;
            sleep(secs(8)).await;
            body.flow_control().release_capacity(length).unwrap();
        }
        assert_eq!(count, 50_000);

        polled.set(0);
        let (response, _) = send.send_request(get(Method::GET, "/"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap().len(), 1000);
        sleep(secs(5)).await;
        // Nothing is asked of an endpoint that the client has no window for.
        assert!(polled.get() <= 2, "{}", polled.get());
        sleep(secs(20)).await;
        body.flow_control().release_capacity(1000).unwrap();
        let error = loop {
            match body.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("the answer was cut off"),
            }
        };
        assert_eq!(error.reason(), Some(Reason::CANCEL));
    });
}

/// Makes its frames when they are asked for.
struct Lazy {
    steps: Box<dyn Iterator<Item = Step>>,
    _tools: Toolbox,
}

impl http_body::Body for Lazy {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        std::task::Poll::Ready(match self.steps.next() {
            Some(Step::Data(data)) => Some(Ok(http_body::Frame::data(data))),
            _ => None,
        })
    }
}

struct OnDrop(Rc<Cell<u32>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn a_reset_cancels_the_request_also_while_its_content_is_awaited() {
    run(|tools| async move {
        let ended = Rc::new(Cell::new(0));
        let (seen, script) = (Rc::clone(&ended), tools.clone());
        let hanging = service(move |inbound: Inbound| {
            let (guard, script) = (OnDrop(Rc::clone(&seen)), script.clone());
            async move {
                let _guard = guard;
                if inbound.request.uri().path() == "/never" {
                    pending::<()>().await;
                }
                let guard = OnDrop(Rc::clone(&_guard.0));
                reply(
                    200,
                    Box::pin(Guarded {
                        _guard: guard,
                        script: Script::new(&script, [Step::Data(vec![0; 1000].into()), Step::Hang]),
                    }),
                )
            }
        });
        let mut send = narrow(serve(&tools, &hanging).raw).await;
        let (response, mut stream) = send.send_request(get(Method::GET, "/never"), true).unwrap();
        sleep(secs(1)).await;
        stream.send_reset(Reason::CANCEL);
        drop(response);
        sleep(secs(1)).await;
        assert_eq!(ended.get(), 1);

        // The window was shut once, which is what used to lose the waker.
        let (response, mut stream) = send.send_request(get(Method::GET, "/"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        body.data().await.unwrap().unwrap();
        body.flow_control().release_capacity(1000).unwrap();
        sleep(secs(1)).await;
        assert_eq!(ended.get(), 2);
        stream.send_reset(Reason::CANCEL);
        sleep(secs(1)).await;
        assert_eq!(ended.get(), 3);
    });
}

struct Guarded {
    _guard: OnDrop,
    script: Script,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.script).poll_frame(cx)
    }
}

#[test]
fn a_connection_that_is_used_now_and_then_is_kept_and_an_idle_one_is_not() {
    run(|tools| async move {
        let served = serve(&tools, &echo());
        let connection = client::handshake(served.raw.io).await.unwrap();
        for _ in 0..10 {
            ask(&connection, Method::GET, empty()).await.unwrap();
            sleep(secs(50)).await;
        }
        sleep(secs(20)).await;
        let ended = served.ended.await.unwrap();
        assert!(matches!(ended, Ended::Cleanly), "{ended:?}");
        assert!(connection.is_closed());
    });
}

/// Answers 408 to what stalls, and else the number of bytes.
fn measuring() -> Rc<impl Service> {
    service(|inbound: Inbound| async move {
        match collect(&mut inbound.request.into_body()).await {
            Ok(content) => text(200, content.len().to_string()),
            Err(BodyError::Stalled) => text(408, "stalled"),
            Err(error) => text(400, error.to_string()),
        }
    })
}

#[test]
fn a_trickle_is_cut_off_and_a_slow_service_not_held_against_its_client() {
    run(|tools| async move {
        let upload = |content: &'static [u8]| {
            let tools = tools.clone();
            async move {
                let served = serve(&tools, &measuring());
                let connection = client::handshake(served.raw.io).await.unwrap();
                // Well within the idle time, and yet not content.
                let wait = Duration::from_millis(900);
                let steps = (0..60).flat_map(|_| [Step::Wait(wait), Step::Data(content.into())]);
                let body = Script::new(&tools, steps).boxed();
                ask(&connection, Method::POST, body).await.unwrap().0.as_u16()
            }
        };
        assert_eq!(upload(b"a").await, 408);
        assert_eq!(upload(b"").await, 408);
        assert_eq!(upload(&[b'a'; 300]).await, 200);

        // The client has sent all it can; the service takes its time between two reads.
        let lazy = service(|inbound: Inbound| async move {
            let mut body = inbound.request.into_body();
            let mut count = 0;
            loop {
                sleep(secs(20)).await;
                match poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await {
                    Some(Ok(frame)) => count += frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(error)) => return text(500, error.to_string()),
                    None => return text(200, count.to_string()),
                }
            }
        });
        let served = serve(&tools, &lazy);
        let connection = client::handshake(served.raw.io).await.unwrap();
        let steps = (0..10).map(|_| Step::Data("abc".into()));
        let body = Script::new(&tools, steps).boxed();
        let (status, _, content) = ask(&connection, Method::POST, body).await.unwrap();
        assert_eq!((status.as_u16(), &content[..]), (200, &b"30"[..]));
    });
}

#[test]
fn a_refused_answer_to_head_has_no_content() {
    run(|tools| async move {
        let served = serve(&tools, &echo());
        let connection = client::handshake(served.raw.io).await.unwrap();
        for (method, content) in [(Method::HEAD, &b""[..]), (Method::GET, b"too_many_headers")] {
            let mut request = get(method, "/");
            for number in 0..101 {
                let name = http::HeaderName::try_from(format!("x-{number}")).unwrap();
                request.headers_mut().insert(name, HeaderValue::from_static("1"));
            }
            let mut exchange = Exchange::start(&connection, request, empty(), false).unwrap();
            assert_eq!(last(&mut exchange).await.unwrap().status().as_u16(), 431);
            assert_eq!(collect(&mut Content(&mut exchange)).await.unwrap(), content);
        }
    });
}

// By hand.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn headers(stream: u32, flags: u8) -> Vec<u8> {
    frame(1, flags | 4, stream, &[0x82, 0x86, 0x84, 0x41, 1, b'x'])
}

fn reset(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &8_u32.to_be_bytes())
}

async fn hello(served: &mut Served) {
    served.raw.send(PREFACE).await;
    served.raw.send(frame(4, 0, 0, &[])).await;
    served.raw.receive().await;
}

fn counting(calls: &Rc<Cell<u32>>) -> Rc<impl Service> {
    let calls = Rc::clone(calls);
    service(move |_: Inbound| {
        calls.set(calls.get() + 1);
        pending()
    })
}

/// Writes as long as the peer reads, and keeps reading what it says.
async fn attack(served: Served, bytes: impl Fn(u32) -> Vec<u8>) -> (Ended, u32) {
    let (mut read, mut write) = tokio::io::split(served.raw.io);
    let reader = tokio::task::spawn_local(async move {
        drop(tokio::io::copy(&mut read, &mut tokio::io::sink()).await);
    });
    let mut sent = 0;
    while sent < 100_000 && write.write_all(&bytes(sent)).await.is_ok() {
        sent += 1;
        if sent % 10 == 0 {
            tokio::task::yield_now().await;
        }
        if served.ended.is_finished() {
            break;
        }
    }
    let ended = tokio::time::timeout(secs(10), served.ended)
        .await
        .expect("the connection ends")
        .unwrap();
    reader.abort();
    (ended, sent)
}

#[test]
fn rapid_resets_end_the_connection_and_few_requests_reach_the_service() {
    run(|tools| async move {
        // In one write, so that the reset is there before anybody looks.
        let calls = Rc::new(Cell::new(0));
        let mut served = serve(&tools, &counting(&calls));
        hello(&mut served).await;
        let (ended, _) = attack(served, |at| [headers(2 * at + 1, 1), reset(2 * at + 1)].concat()).await;
        assert!(matches!(ended, Ended::ResetFlood), "{ended:?}");
        assert!(calls.get() <= 20, "{}", calls.get());

        // One after the other, each seen before it is reset.
        let calls = Rc::new(Cell::new(0));
        let mut served = serve(&tools, &counting(&calls));
        hello(&mut served).await;
        for at in 0..150 {
            if served.raw.io.write_all(&headers(2 * at + 1, 1)).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(10)).await;
            drop(served.raw.io.write_all(&reset(2 * at + 1)).await);
            sleep(Duration::from_millis(10)).await;
        }
        let (answer, closed) = served.raw.receive().await;
        assert!(closed && !answer.is_empty());
        assert!(matches!(served.ended.await.unwrap(), Ended::ResetFlood));
        assert!((100..=102).contains(&calls.get()), "{}", calls.get());
    });
}

#[test]
fn resets_that_the_client_makes_us_send_count_as_its_own() {
    run(|tools| async move {
        let calls = Rc::new(Cell::new(0));
        let mut served = serve(&tools, &counting(&calls));
        hello(&mut served).await;
        // A window beyond 2^31-1 is an error of the stream (RFC 9113 §6.9.1).
        let (ended, sent) = attack(served, |at| {
            let stream = 2 * at + 1;
            [
                headers(stream, 0),
                frame(8, 0, stream, &0x7fff_ffff_u32.to_be_bytes()),
            ]
            .concat()
        })
        .await;
        assert!(matches!(ended, Ended::ResetFlood), "{ended:?}");
        assert!(calls.get() <= 110 && sent < 10_000, "{} {sent}", calls.get());
    });
}

#[test]
fn frames_that_ask_for_nothing_are_bounded() {
    run(|tools| async move {
        let one = frame(8, 0, 0, &1_u32.to_be_bytes());
        let floods: [(&str, Vec<u8>); 6] = [
            ("ping", frame(6, 0, 0, &[0; 8])),
            ("settings", frame(4, 0, 0, &[])),
            ("window update", one),
            ("priority", frame(2, 0, 1, &[0, 0, 0, 3, 1])),
            ("unknown", frame(0x42, 0, 0, &[])),
            ("settings with a value", frame(4, 0, 0, &[0, 4, 0, 0, 1, 0])),
        ];
        for (name, bytes) in floods {
            let mut served = serve(&tools, &echo());
            hello(&mut served).await;
            let (ended, sent) = attack(served, |_| bytes.clone()).await;
            assert!(matches!(ended, Ended::ResetFlood), "{name}: {ended:?}");
            assert!(sent < 20_000, "{name}: {sent}");
        }
        let mut served = serve(&tools, &echo());
        hello(&mut served).await;
        served.raw.send(headers(1, 0)).await;
        let (ended, sent) = attack(served, |_| frame(0, 0, 1, &[])).await;
        assert!(matches!(ended, Ended::ResetFlood), "{ended:?}");
        assert!(sent < 10_000);

        // A head that never ends.
        let mut served = serve(&tools, &echo());
        hello(&mut served).await;
        served
            .raw
            .send(frame(1, 0, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'x']))
            .await;
        let (_, sent) = attack(served, |_| frame(9, 0, 1, &[])).await;
        assert!(sent < 10_000, "{sent}");
    });
}

#[test]
fn a_head_that_drips_is_given_up_and_heads_in_pieces_are_not() {
    run(|tools| async move {
        // Of a frame that is announced, of one that has to be followed by another, and of such followers.
        let long = frame(1, 5, 1, &[0x82; 50]);
        let begun = frame(1, 1, 1, &[0x82, 0x86, 0x84]);
        for (first, then) in [
            (&long[..9], &long[9..]),
            (&begun[..], &[][..]),
            (&begun[..], &frame(9, 0, 1, &[])[..]),
        ] {
            let mut served = serve(&tools, &echo());
            hello(&mut served).await;
            served.raw.send(first).await;
            for at in 0..20 {
                sleep(Duration::from_millis(400)).await;
                let piece = then.get(at..=at).unwrap_or_default();
                if served.raw.io.write_all(piece).await.is_err() {
                    break;
                }
            }
            let ended = tokio::time::timeout(secs(1), served.ended).await;
            assert!(matches!(ended.unwrap().unwrap(), Ended::HeadTimeout));
        }

        // Another head has begun whenever somebody looks; each of them is complete in time.
        let calls = Rc::new(Cell::new(0));
        let mut served = serve(&tools, &counting(&calls));
        hello(&mut served).await;
        let all: Vec<u8> = (0..50).flat_map(|at| headers(2 * at + 1, 1)).collect();
        served.raw.send(&all[..12]).await;
        for piece in all[12..].chunks(15) {
            sleep(secs(1)).await;
            served.raw.send(piece).await;
        }
        sleep(secs(1)).await;
        assert_eq!(calls.get(), 50);
        assert!(!served.ended.is_finished());
    });
}

#[test]
fn a_ping_now_and_then_costs_nothing() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        hello(&mut served).await;
        for _ in 0..5_000 {
            sleep(Duration::from_millis(10)).await;
            served.raw.send(frame(6, 0, 0, &[0; 8])).await;
        }
        assert!(!served.raw.receive().await.1);
    });
}

#[test]
fn a_client_that_ignores_goaway_is_not_waited_for() {
    run(|tools| async move {
        // Without a stream.
        let mut served = serve(&tools, &echo());
        hello(&mut served).await;
        served.drain.begin();
        let ended = tokio::time::timeout(secs(6), served.ended)
            .await
            .expect("it ends");
        assert!(matches!(ended.unwrap(), Ended::Cleanly));

        // With one that runs, and others that it goes on opening.
        let script = tools.clone();
        let calls = Rc::new(RefCell::new(0));
        let called = Rc::clone(&calls);
        let slow = service(move |_: Inbound| {
            *called.borrow_mut() += 1;
            let script = script.clone();
            async move {
                reply(
                    200,
                    Script::new(&script, [Step::Wait(secs(20)), Step::Data("x".into())]).boxed(),
                )
            }
        });
        let mut served = serve(&tools, &slow);
        hello(&mut served).await;
        served.raw.send(headers(1, 1)).await;
        sleep(secs(1)).await;
        served.drain.begin();
        sleep(secs(1)).await;
        served.raw.send(headers(3, 1)).await;
        for stream in (5..51).step_by(2) {
            sleep(secs(2)).await;
            drop(served.raw.io.write_all(&headers(stream, 1)).await);
        }
        assert_eq!(*calls.borrow(), 2);
        assert!(served.ended.is_finished());
    });
}

#[test]
fn a_client_that_takes_goaway_is_served_to_the_end() {
    run(|tools| async move {
        let script = tools.clone();
        let slow = service(move |_: Inbound| {
            let script = script.clone();
            async move {
                reply(
                    200,
                    Script::new(&script, [Step::Wait(secs(20)), Step::Data("x".into())]).boxed(),
                )
            }
        });
        let served = serve(&tools, &slow);
        let mut connection = client::handshake(served.raw.io).await.unwrap();
        let mut exchange = Exchange::start(&connection, get(Method::GET, "/"), empty(), false).unwrap();
        last(&mut exchange).await.unwrap();
        assert!(connection.has_room());
        served.drain.begin();
        sleep(secs(1)).await;
        // It can be asked before a request is lost to it.
        assert!(!connection.has_room());
        assert_eq!(collect(&mut Content(&mut exchange)).await.unwrap(), "x");
        drop(exchange);
        assert!(matches!(served.ended.await.unwrap(), Ended::Cleanly));
    });
}

// The client side.

#[test]
fn streams_beyond_the_peers_limit_are_not_started() {
    run(|tools| async move {
        let hanging = service(|_: Inbound| pending());
        let served = serve(&tools, &hanging);
        let mut connection = client::handshake(served.raw.io).await.unwrap();
        sleep(secs(1)).await;
        let mut exchanges = Vec::new();
        while connection.has_room() {
            let mut exchange = Exchange::start(&connection, get(Method::GET, "/"), empty(), false).unwrap();
            poll_fn(|cx| {
                assert!(exchange.poll_answer(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            exchanges.push(exchange);
        }
        assert_eq!(exchanges.len(), 100);
        exchanges.pop();
        assert!(connection.has_room());
    });
}

#[test]
fn a_connection_on_which_nothing_is_heard_is_used_no_more() {
    run(|tools| async move {
        let odd = service(|inbound: Inbound| async move {
            if inbound.request.method() == Method::PUT {
                pending::<()>().await;
            }
            text(200, "x")
        });
        let served = serve(&tools, &odd);
        let mut connection = client::handshake(served.raw.io).await.unwrap();
        // One slow request among others says nothing.
        let mut slow = Exchange::start(&connection, get(Method::PUT, "/"), empty(), false).unwrap();
        assert!(tokio::time::timeout(secs(1), last(&mut slow)).await.is_err());
        ask(&connection, Method::GET, empty()).await.unwrap();
        slow.time_out();
        assert!(connection.has_room());
        let mut slow = Exchange::start(&connection, get(Method::PUT, "/"), empty(), false).unwrap();
        assert!(tokio::time::timeout(secs(1), last(&mut slow)).await.is_err());
        slow.time_out();
        assert!(!connection.has_room() && connection.is_closed());
    });
}

#[test]
fn a_failing_upload_is_the_requests_fault() {
    run(|tools| async move {
        let served = serve(&tools, &echo());
        let mut connection = client::handshake(served.raw.io).await.unwrap();
        let body = Script::new(&tools, [Step::Fail(BodyError::Truncated)]).boxed();
        let mut exchange = Exchange::start(&connection, get(Method::POST, "/"), body, false).unwrap();
        assert!(matches!(
            last(&mut exchange).await,
            Err(ExchangeError::Request(BodyError::Truncated))
        ));
        exchange.time_out();
        assert!(connection.has_room());
    });
}
