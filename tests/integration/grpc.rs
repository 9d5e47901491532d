//! gRPC with a real implementation on both ends: all four kinds of call, answers of trailers alone, cancellation,
//! deadlines, and our own refusals in its language.

use bytes::Bytes;
use http::Request as HttpRequest;
use tokio_stream::StreamExt;
use tonic::{Code, Request};

use crate::support::grpc::{GrpcClient, GrpcUpstream, all, say};
use crate::support::h2::{H2, H2Upstream, collect};
use crate::support::proxy::{Proxy, proxy, with};
use crate::support::upstream::Upstream;
use crate::support::{eventually, soon};

const HTTP2: &str = "    protocol: http2\n";

async fn in_front_of(upstream: &GrpcUpstream) -> (Proxy, GrpcClient) {
    let proxy = proxy(&with("", HTTP2, &[upstream.address()])).await;
    let client = GrpcClient::connect(proxy.web()).await;
    (proxy, client)
}

#[tokio::test]
async fn one_message_is_answered_by_one_and_metadata_goes_along() {
    let upstream = GrpcUpstream::start();
    let (proxy, mut client) = in_front_of(&upstream).await;
    let mut request = Request::new(say("hello", 7));
    request
        .metadata_mut()
        .insert("x-tag", "blue".parse().expect("ASCII"));
    let answer = client.one("/test.Echo/One", request).await.expect("a success");
    assert_eq!(answer.metadata().get("x-tag-back").expect("metadata"), "blue");
    assert_eq!(answer.into_inner(), say("hello", 7));
    let line = proxy.logged(|line| line["path"] == "/test.Echo/One").await;
    assert_eq!(line["grpc_status"], 0, "{line}");
}

#[tokio::test]
async fn one_message_is_answered_by_many() {
    let upstream = GrpcUpstream::start();
    let (_proxy, mut client) = in_front_of(&upstream).await;
    let stream = client
        .down("/test.Echo/Down", say("", 100))
        .await
        .expect("a stream");
    let (messages, end) = all(stream).await;
    assert_eq!(messages.len(), 100);
    assert_eq!(messages[99], say("item", 99));
    end.expect("a success");
}

#[tokio::test]
async fn an_error_after_messages_arrives_after_them() {
    let upstream = GrpcUpstream::start();
    let (proxy, mut client) = in_front_of(&upstream).await;
    let stream = client
        .down("/test.Echo/Down", say("disk gone", 3))
        .await
        .expect("a stream");
    let (messages, end) = all(stream).await;
    assert_eq!(messages.len(), 3);
    let status = end.expect_err("a failure");
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "disk gone"));
    let line = proxy.logged(|line| line["path"] == "/test.Echo/Down").await;
    assert_eq!(line["grpc_status"], 15, "{line}");
}

#[tokio::test]
async fn many_messages_are_answered_by_one() {
    let upstream = GrpcUpstream::start();
    let (_proxy, mut client) = in_front_of(&upstream).await;
    let sum = client
        .up(vec![say("a", 1), say("b", 2), say("c", 39)])
        .await
        .expect("a sum");
    assert_eq!(sum, say("a b c", 42));
}

#[tokio::test]
async fn a_conversation_goes_message_by_message() {
    let upstream = GrpcUpstream::start();
    let (_proxy, mut client) = in_front_of(&upstream).await;
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let mut stream = client
        .both(tokio_stream::wrappers::ReceiverStream::new(receive))
        .await
        .expect("a stream");
    for number in 0..10 {
        // The next is said only after the last was answered, so nothing may wait in between.
        send.send(say("ping", number)).await.expect("a stream");
        let answer = soon("an answer", stream.message())
            .await
            .expect("a message")
            .expect("a message");
        assert_eq!(answer, say("PING", number + 1));
    }
    drop(send);
    assert_eq!(soon("the end", stream.message()).await.expect("a success"), None);
}

#[tokio::test]
async fn an_answer_of_trailers_alone_keeps_its_details() {
    let upstream = GrpcUpstream::start();
    let (_proxy, mut client) = in_front_of(&upstream).await;
    let status = client
        .one("/test.Echo/Refuse", Request::new(say("häh?", 0)))
        .await
        .expect_err("a refusal");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "not now: häh?");
    assert_eq!(status.metadata().get("x-why").expect("metadata"), "because");
    // It is an answer, not a failure of the endpoint: the next call goes there too.
    client
        .one("/test.Echo/One", Request::new(say("", 0)))
        .await
        .expect("a success");
    assert_eq!(upstream.calls(), 2);
}

#[tokio::test]
async fn a_call_that_the_client_cancels_is_cancelled_upstream() {
    let upstream = GrpcUpstream::start();
    let (_proxy, client) = in_front_of(&upstream).await;
    let mut caller = client.clone();
    let call = tokio::spawn(async move { caller.one("/test.Echo/Hang", Request::new(say("", 0))).await });
    // In its method, not only on its way there: a message that was never read is no call.
    eventually("the call arrives", || upstream.hanging() == 1).await;
    call.abort();
    eventually("the call is cancelled", || upstream.cancelled() == 1).await;

    let mut caller = client.clone();
    let mut stream = caller
        .down("/test.Echo/Endless", say("", 0))
        .await
        .expect("a stream");
    for _ in 0..3 {
        soon("a message", stream.next())
            .await
            .expect("a message")
            .expect("a message");
    }
    drop(stream);
    eventually("the stream is cancelled", || upstream.cancelled() == 2).await;
}

#[tokio::test]
async fn a_deadline_is_passed_on_and_enforced() {
    // An endpoint that hears of the deadline and does not care.
    let (tell, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let upstream = H2Upstream::each(move |request, mut respond| {
        let tell = tell.clone();
        async move {
            let timeout = request.headers().get("grpc-timeout").cloned();
            tell.send(
                timeout
                    .expect("a deadline upstream")
                    .to_str()
                    .expect("ASCII")
                    .to_owned(),
            )
            .expect("a listener");
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            tell.send(format!("{reset:?}")).expect("a listener");
        }
    });
    let proxy = proxy(&with("", HTTP2, &[upstream.address()])).await;
    // By hand, because a good client would not wait for us.
    let mut client = H2::connect(proxy.web()).await;
    let request = HttpRequest::post(format!("http://{}/test.Echo/Hang", proxy.web()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "700m")
        .body(())
        .expect("a request");
    let (answer, mut send) = client.start(request, false).await;
    send.send_data(Bytes::from_static(&[0, 0, 0, 0, 0]), true)
        .expect("a stream");
    let answer = collect(answer).await.expect("an answer");
    assert_eq!(
        (answer.status, answer.fields.get("grpc-status")),
        (200, Some("4")),
        "{answer:?}"
    );
    let told = soon("a deadline", heard.recv()).await.expect("a deadline");
    let (digits, unit) = told.split_at(told.len() - 1);
    let amount: u64 = digits.parse().expect("a number");
    let micros = match unit {
        "m" => amount * 1000,
        "u" => amount,
        "n" => amount / 1000,
        _ => panic!("{told}"),
    };
    assert!(micros <= 700_000, "{told} is later than the client's deadline");
    assert_eq!(
        soon("a reset", heard.recv()).await.expect("a reset"),
        "Ok(CANCEL)"
    );
}

#[tokio::test]
async fn a_deadline_that_has_passed_ends_a_stalled_call() {
    // An endpoint that knows nothing of deadlines.
    let upstream = H2Upstream::each(|_, mut respond| async move {
        drop(std::future::poll_fn(|cx| respond.poll_reset(cx)).await);
    });
    let proxy = proxy(&with("", HTTP2, &[upstream.address()])).await;
    let mut client = GrpcClient::connect(proxy.web()).await;
    let mut request = Request::new(say("", 0));
    request
        .metadata_mut()
        .insert("grpc-timeout", "300m".parse().expect("ASCII"));
    let status = client
        .one("/test.Echo/Hang", request)
        .await
        .expect_err("too late");
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status:?}"
    );
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn our_own_refusals_speak_grpc() {
    let dead = Upstream::refuses();
    let config = format!(
        "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - match: {{ grpc: {{ service: test.Echo, method: One }} }}\n    cluster: app\n\
         clusters:\n  app:\n    protocol: http2\n    endpoints: [{}]\n",
        dead.address()
    );
    let proxy = proxy(&config).await;
    let mut client = GrpcClient::connect(proxy.web()).await;
    let status = client
        .one("/test.Echo/One", Request::new(say("", 0)))
        .await
        .expect_err("nobody there");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(
        status.metadata().get("x-bellwether-rejected").expect("a reason"),
        "connect_failed"
    );
    let status = client
        .one("/test.Echo/Other", Request::new(say("", 0)))
        .await
        .expect_err("no route");
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}

#[tokio::test]
async fn a_large_message_goes_through_both_ways() {
    let upstream = GrpcUpstream::start();
    let (_proxy, mut client) = in_front_of(&upstream).await;
    let text = "x".repeat(3_000_000);
    let answer = client
        .one("/test.Echo/One", Request::new(say(&text, 1)))
        .await
        .expect("a success");
    assert_eq!(answer.into_inner().text.len(), text.len());
}

/// A server that ends calls with UNAVAILABLE: `messages` after its head, or in its head alone.
fn unavailable(messages: Option<usize>) -> H2Upstream {
    H2Upstream::each(move |_, mut respond| async move {
        let head = http::Response::builder().header("content-type", "application/grpc");
        let Some(messages) = messages else {
            let head = head.header("grpc-status", "14").body(()).expect("a head");
            respond.send_response(head, true).expect("a stream");
            return;
        };
        let head = head.body(()).expect("a head");
        let mut stream = respond.send_response(head, false).expect("a stream");
        for _ in 0..messages {
            let message = Bytes::from_static(&[0, 0, 0, 0, 0]);
            stream.send_data(message, false).expect("a stream");
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "14".parse().expect("ASCII"));
        stream.send_trailers(trailers).expect("a stream");
    })
}

/// Asks once and tells the status of the call and how many messages came.
async fn status_of_call(proxy: &Proxy) -> (String, usize) {
    let mut client = H2::connect(proxy.web()).await;
    let request = HttpRequest::post(format!("http://{}/test.Echo/One", proxy.web()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(&[0_u8, 0, 0, 0, 0][..])
        .expect("a request");
    let answer = client.ask(request).await;
    let status = answer
        .fields
        .get("grpc-status")
        .or_else(|| answer.trailers.get("grpc-status"));
    (status.unwrap_or("").to_owned(), answer.body.len() / 5)
}

#[tokio::test]
async fn scenario_31_a_call_that_ends_without_a_message_is_tried_again_wherever_its_status_is() {
    let route = "    circuit_breaker: off\n    retry: { retry_on: [\"grpc:unavailable\"], methods: all }\n";
    let cluster =
        format!("{HTTP2}    load_balancing: round_robin\n    slow_start: off\n    outlier_detection: off\n");
    for (messages, is_tried_again) in [(None, true), (Some(0), true), (Some(1), false)] {
        let (bad, good) = (unavailable(messages), GrpcUpstream::start());
        let proxy = proxy(&with(route, &cluster, &[bad.address(), good.address()])).await;
        let mut met = 0;
        for _ in 0..4 {
            let before = bad.requests();
            let (status, came) = status_of_call(&proxy).await;
            if bad.requests() == before {
                continue;
            }
            met += 1;
            if is_tried_again {
                assert_eq!(
                    (status.as_str(), came),
                    ("0", 1),
                    "{messages:?}: the other one answered"
                );
            } else {
                assert_eq!(
                    (status.as_str(), came),
                    ("14", 1),
                    "{messages:?}: what was begun is not begun again"
                );
            }
        }
        assert!(met > 0, "{messages:?}: it had its turn");
        let metrics = proxy.metrics().await;
        let failed = metrics.sum("bellwether_upstream_failures_total", &[("reason", "grpc")]);
        assert_eq!(
            failed as usize, met,
            "{messages:?}: each is a failure of its endpoint"
        );
        let retries = metrics.sum("bellwether_retries_total", &[("trigger", "grpc")]);
        assert_eq!(
            retries as usize,
            if is_tried_again { met } else { 0 },
            "{messages:?}"
        );
    }
}
