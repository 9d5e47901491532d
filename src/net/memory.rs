//! An in-process connection: two [`Io`] ends over a bounded buffer, without a kernel.
//!
//! Tests that move time by hand need it, because a paused clock runs ahead of real sockets. Each direction holds at
//! most `capacity` bytes and then pushes back; shutting one end down ends the other end's reading and nothing else.

use super::io::Io;

/// Two connected ends. What is written to one is read from the other.
pub fn pair(capacity: usize) -> (Io, Io) {
    let (left, right) = tokio::io::duplex(capacity);
    (Io::boxed(left), Io::boxed(right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn shutting_down_one_direction_leaves_the_other_open() {
        let (mut client, mut server) = pair(16);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    }
}
