//! HTTP/1.1 read without mercy, for both ends: a message that two readers could understand differently is an error.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Field lines in the order they came; names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(pub(crate) Vec<(String, String)>);

impl Fields {
    /// The only value of a field. Fails the test when there are several.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} came {} times: {all:?}", all.len());
        all.first().copied()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
            .collect()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    pub(crate) fn from_map(map: &http::HeaderMap) -> Self {
        Self(
            map.iter()
                .map(|(name, value)| (name.to_string(), latin1(value.as_bytes())))
                .collect(),
        )
    }
}

/// The head of a message.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// The first line.
    pub(crate) start: String,
    pub(crate) fields: Fields,
}

/// How a message says where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
}

impl Head {
    /// How the body is framed, if there is one.
    pub(crate) fn framing(&self) -> io::Result<Framing> {
        let lengths = self.fields.all("content-length");
        let codings = self.fields.all("transfer-encoding");
        match (&*lengths, &*codings) {
            ([], []) => Ok(Framing::None),
            ([], [coding]) if *coding == "chunked" => Ok(Framing::Chunked),
            ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => length
                .parse()
                .map(Framing::Length)
                .map_err(|_overflow| wrong("a length that does not fit")),
            _ => Err(wrong(&format!("ambiguous framing: {lengths:?} and {codings:?}"))),
        }
    }

    /// The tokens of `connection`, in lower case.
    pub(crate) fn connection(&self) -> Vec<String> {
        self.fields
            .all("connection")
            .iter()
            .flat_map(|value| value.split(','))
            .map(|token| token.trim().to_ascii_lowercase())
            .collect()
    }
}

/// A connection that is read.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    pub(crate) io: R,
    pub(crate) buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self {
            io,
            buffer: Vec::new(),
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(16 * 1024);
        self.io.read_buf(&mut self.buffer).await
    }

    /// A head, or `None` where the connection ends before one begins.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let raw: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return parse(&raw).map(Some);
            }
            if self.fill().await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(cut("inside a head")),
                };
            }
        }
    }

    pub(crate) async fn exactly(&mut self, length: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from(length).expect("fits");
        while self.buffer.len() < length {
            if self.fill().await? == 0 {
                return Err(cut("inside a body"));
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// Counts a body of this length without keeping it.
    pub(crate) async fn swallow(&mut self, length: u64) -> io::Result<u64> {
        let mut left = length;
        loop {
            let taken = left.min(self.buffer.len() as u64);
            self.buffer.drain(..usize::try_from(taken).expect("fits"));
            left -= taken;
            if left == 0 {
                return Ok(length);
            }
            if self.fill().await? == 0 {
                return Err(cut("inside a body"));
            }
        }
    }

    /// A chunked body and its trailers.
    pub(crate) async fn chunked(&mut self) -> io::Result<(Vec<u8>, Fields)> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok((body, self.trailers().await?))
    }

    /// One chunk; `None` is the last.
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line().await?;
        // We write our own framing, so extensions, signs and leading spaces are somebody else's that came through.
        if line.is_empty() || line.len() > 16 || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong(&format!("chunk size {line:?}")));
        }
        let size = u64::from_str_radix(&line, 16).map_err(|_overflow| wrong("chunk size"))?;
        if size == 0 {
            return Ok(None);
        }
        let chunk = self.exactly(size).await?;
        match &*self.exactly(2).await? {
            b"\r\n" => Ok(Some(chunk)),
            _ => Err(wrong("a chunk without its end")),
        }
    }

    /// What follows the last chunk.
    pub(crate) async fn trailers(&mut self) -> io::Result<Fields> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(Fields(fields));
            }
            fields.push(field(&line)?);
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\n") {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let line = line
                    .strip_suffix(b"\r\n")
                    .ok_or_else(|| wrong("a bare line feed"))?;
                return Ok(latin1(line));
            }
            if self.fill().await? == 0 {
                return Err(cut("inside a line"));
            }
        }
    }

    /// Everything until the end.
    pub(crate) async fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.fill().await? > 0 {}
        Ok(std::mem::take(&mut self.buffer))
    }
}

fn parse(raw: &[u8]) -> io::Result<Head> {
    let text = latin1(&raw[..raw.len() - 4]);
    let mut lines = text.split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    if text.replace("\r\n", "").contains(['\r', '\n', '\0']) {
        return Err(wrong(&format!("a stray control character in {text:?}")));
    }
    let fields = lines.map(field).collect::<io::Result<_>>()?;
    Ok(Head {
        start,
        fields: Fields(fields),
    })
}

fn field(line: &str) -> io::Result<(String, String)> {
    let (name, value) = line
        .split_once(':')
        .ok_or_else(|| wrong(&format!("no colon in {line:?}")))?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(wrong(&format!("field name {name:?}")));
    }
    Ok((
        name.to_ascii_lowercase(),
        value.trim_matches([' ', '\t']).to_owned(),
    ))
}

pub(crate) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}

pub(crate) fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn cut(wher: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the connection ended {wher}"),
    )
}
