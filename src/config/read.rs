//! From a path or bytes to a [`Document`]: files, includes, and the outside world that values may name.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::diagnostic::{Diagnostic, Diagnostics, FileId, Sources, Span};
use super::table::{Cx, Lower};
use super::yaml::{self, Key, Kind, Node};
use super::{Config, Document, check, effective, supported};

/// Files one configuration may have.
const MAX_FILES: usize = 1_000;

/// Reads one configuration file and everything it includes.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn read(path: &Path) -> Result<Document, Diagnostics> {
    Reader::new().read(path)
}

/// Reads a configuration from bytes; relative paths start at the working directory.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn read_bytes(name: &str, bytes: &[u8]) -> Result<Document, Diagnostics> {
    Reader::new().read_bytes(name, bytes)
}

/// What a configuration sees of the world: the file system and the environment.
///
/// Tests give it a root for absolute paths and an environment of their own.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    root: Option<PathBuf>,
    variables: Option<HashMap<String, String>>,
    every_block: bool,
}

impl Reader {
    /// The real file system and the real environment.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Absolute paths written in the configuration start here.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }

    /// `${…}` sees these variables and no others.
    #[must_use]
    pub fn with_variables<K: Into<String>, V: Into<String>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.variables = Some(
            variables
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        );
        self
    }

    /// Accepts blocks that this version knows but does not perform; for tools that only look.
    #[must_use]
    pub fn with_every_block(mut self) -> Self {
        self.every_block = true;
        self
    }

    /// Reads one configuration file and everything it includes.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn read(&self, path: &Path) -> Result<Document, Diagnostics> {
        self.read_as(&path.display().to_string(), path)
    }

    /// Reads a file under another name than its path.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn read_as(&self, name: &str, path: &Path) -> Result<Document, Diagnostics> {
        match self.bytes(path, yaml::MAX_BYTES + 1) {
            Ok(bytes) => self.document(name, Some(path), &bytes),
            Err(why) => {
                let mut out = Diagnostics::new(Sources::default());
                out.push(
                    Diagnostic::error("E0606", format!("the configuration file `{name}` cannot be read"))
                        .note(why)
                        .help("name another with `-c FILE`"),
                );
                Err(out)
            }
        }
    }

    /// Reads a configuration from bytes.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn read_bytes(&self, name: &str, bytes: &[u8]) -> Result<Document, Diagnostics> {
        self.document(name, None, bytes)
    }

    fn document(&self, name: &str, path: Option<&Path>, bytes: &[u8]) -> Result<Document, Diagnostics> {
        let mut out = Diagnostics::default();
        let Some(root) = Files {
            reader: self,
            out: &mut out,
            open: Vec::new(),
        }
        .load(name.to_owned(), path, bytes) else {
            return Err(out);
        };
        let written: Vec<Rc<str>> = match &root.kind {
            Kind::Map(entries) => entries.iter().map(|(key, _)| key.name.clone()).collect(),
            _ => Vec::new(),
        };
        let mut cx = Cx::new(&mut out, self);
        if let Some(mut config) = Config::lower(&root, &mut cx) {
            effective::apply_profile(&mut config);
            let effective = effective::resolve(&config, &mut out);
            check::all(&config, &effective, &written, &mut out);
            if !self.every_block {
                supported::check(&config, &mut out);
            }
            if !out.has_errors() {
                return Ok(Document {
                    config,
                    effective,
                    diagnostics: out,
                });
            }
        }
        debug_assert!(out.has_errors(), "what cannot be lowered has been reported");
        Err(out)
    }

    /// A variable of the environment.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        match &self.variables {
            Some(variables) => variables.get(name).cloned(),
            None => std::env::var(name).ok(),
        }
    }

    /// Where an absolute path leads.
    pub(crate) fn rooted(&self, path: &Path) -> PathBuf {
        match (&self.root, path.strip_prefix("/")) {
            (Some(root), Ok(rest)) if !path.starts_with(root) => root.join(rest),
            _ => path.to_path_buf(),
        }
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        path.is_file()
    }

    /// A file in the same directory whose name is near.
    pub(crate) fn similar(&self, path: &Path) -> Option<String> {
        let wanted = path.file_name()?.to_string_lossy().into_owned();
        let mut names: Vec<String> = std::fs::read_dir(path.parent()?)
            .ok()?
            .take(1_000)
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        names.sort();
        super::suggest::nearest(&wanted, names.iter().map(String::as_str)).map(str::to_owned)
    }

    /// The bytes of a file, at most `limit`; the error is in words.
    pub(crate) fn bytes(&self, path: &Path, limit: usize) -> Result<Vec<u8>, String> {
        let file = std::fs::File::open(path).map_err(|error| in_words(&error, path))?;
        if file.metadata().is_ok_and(|meta| meta.is_dir()) {
            return Err(format!("{} is a directory", path.display()));
        }
        let mut bytes = Vec::new();
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| in_words(&error, path))?;
        Ok(bytes)
    }
}

fn in_words(error: &std::io::Error, path: &Path) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => format!("no such file: {}", path.display()),
        std::io::ErrorKind::PermissionDenied => format!("no permission to read {}", path.display()),
        _ => format!("{}: {error}", path.display()),
    }
}

/// Reads files and puts their trees together.
struct Files<'a> {
    reader: &'a Reader,
    out: &'a mut Diagnostics,
    /// The files that are being read, outermost first: an include cycle closes on one of them.
    open: Vec<PathBuf>,
}

impl Files<'_> {
    fn load(&mut self, name: String, path: Option<&Path>, bytes: &[u8]) -> Option<Node> {
        let file = self.text(name, path.map(Path::to_path_buf), bytes)?;
        let node = yaml::parse(file, self.out);
        let node = match node {
            Some(Node {
                kind: Kind::Empty, ..
            })
            | None => {
                if !self.out.has_errors() {
                    self.out.push(
                        Diagnostic::error("E0107", "the configuration is empty")
                            .at(Span::new(file, 0, 0), "")
                            .help("config/quickstart.yaml is a first one; `bellwether schema` has every key"),
                    );
                }
                return None;
            }
            Some(node) => node,
        };
        if let Kind::Map(entries) = &node.kind {
            if !self.version(entries) {
                return None;
            }
            if let Some((key, include)) = entries.iter().find(|(key, _)| &*key.name == "include") {
                self.open.extend(path.map(canonical));
                let combined = self.include(key, include, entries.to_vec());
                self.open.pop();
                return Some(Node {
                    span: node.span,
                    kind: Kind::Map(combined.into()),
                });
            }
        }
        Some(node)
    }

    /// Takes the bytes of a file among the sources, if they are text.
    fn text(&mut self, name: String, path: Option<PathBuf>, bytes: &[u8]) -> Option<FileId> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        if bytes.len() > yaml::MAX_BYTES {
            let file = self.out.sources.add(name, path, String::new());
            let limit = yaml::MAX_BYTES / 1024 / 1024;
            self.out.push(
                Diagnostic::error("E0109", format!("the file is larger than {limit} MiB"))
                    .at(Span::new(file, 0, 0), ""),
            );
            return None;
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Some(self.out.sources.add(name, path, text.to_owned())),
            Err(error) => {
                let good = error.valid_up_to();
                let text = String::from_utf8_lossy(bytes).into_owned();
                let file = self.out.sources.add(name, path, text);
                let byte = bytes.get(good).copied().unwrap_or(0);
                self.out.push(
                    Diagnostic::error("E0109", "the file is not UTF-8 text")
                        .at(
                            Span::new(file, good, good + 3),
                            format!("byte {good} is 0x{byte:02x}"),
                        )
                        .help("save it as UTF-8"),
                );
                None
            }
        }
    }

    /// A newer format is refused before its keys are called unknown.
    fn version(&mut self, entries: &[(Key, Node)]) -> bool {
        let Some((_, node)) = entries.iter().find(|(key, _)| &*key.name == "version") else {
            return true;
        };
        match node.word().and_then(|word| word.parse::<u32>().ok()) {
            Some(1) | None => true,
            Some(number) => {
                self.out.push(
                    Diagnostic::error(
                        "E0208",
                        format!("this build reads version 1, the file is version {number}"),
                    )
                    .at(
                        node.span,
                        if number == 0 {
                            "write `version: 1`"
                        } else {
                            "a newer bellwether reads this"
                        },
                    )
                    .help("install a newer release, or see docs/configuration.md for what version 1 knows"),
                );
                false
            }
        }
    }

    /// Adds what the included files say to the entries of the including one.
    fn include(&mut self, key: &Key, include: &Node, mut entries: Vec<(Key, Node)>) -> Vec<(Key, Node)> {
        let patterns: Vec<Node> = match &include.kind {
            Kind::List(list) => list.to_vec(),
            _ => vec![include.clone()],
        };
        for pattern in patterns {
            let Kind::Scalar(scalar) = &pattern.kind else {
                self.out.push(
                    Diagnostic::error("E0203", "`include` wants a file name or a list of them")
                        .at(key.span, ""),
                );
                continue;
            };
            let written = &*scalar.text;
            let base = self.out.sources.directory(pattern.span).join(written);
            let base = if Path::new(written).is_absolute() {
                self.reader.rooted(&base)
            } else {
                base
            };
            let found = glob(&base);
            if found.is_empty() {
                let what = if written.contains(['*', '?', '[']) {
                    "matches no file"
                } else {
                    "is not there"
                };
                self.out.push(
                    Diagnostic::error("E0405", format!("`{written}` {what}"))
                        .at(pattern.span, format!("looked for {}", base.display()))
                        .note("relative paths start at the directory of the file that includes"),
                );
            }
            for path in found {
                if let Some(more) = self.one(&pattern, &path) {
                    add(&mut entries, &more);
                }
            }
        }
        entries
    }

    /// What people call an included file: like the including one, with the path from there.
    fn name_of(&self, at: Span, path: &Path) -> String {
        let from = self.out.sources.directory(at);
        let name = self
            .out
            .sources
            .of(at)
            .and_then(|source| Path::new(&source.name).parent().map(Path::to_path_buf));
        let name = match (name, path.strip_prefix(&from)) {
            (Some(folder), Ok(rest)) => folder.join(rest),
            _ => path.to_path_buf(),
        };
        name.display().to_string()
    }

    fn one(&mut self, pattern: &Node, path: &Path) -> Option<Rc<[(Key, Node)]>> {
        let shown = self.name_of(pattern.span, path);
        if self.open.contains(&canonical(path)) {
            self.out.push(
                Diagnostic::error("E0405", format!("`{shown}` includes itself"))
                    .at(pattern.span, "the circle closes here"),
            );
            return None;
        }
        if self.out.sources.iter().count() >= MAX_FILES {
            self.out.push(
                Diagnostic::error("E0405", format!("more than {MAX_FILES} files")).at(pattern.span, ""),
            );
            return None;
        }
        let bytes = match self.reader.bytes(path, yaml::MAX_BYTES + 1) {
            Ok(bytes) => bytes,
            Err(why) => {
                self.out.push(
                    Diagnostic::error("E0405", format!("`{shown}` cannot be read")).at(pattern.span, why),
                );
                return None;
            }
        };
        match self.load(shown, Some(path), &bytes)?.kind {
            Kind::Map(entries) => Some(entries),
            _ => {
                let file = self.out.sources.iter().count().saturating_sub(1);
                let at = Span::new(FileId(u16::try_from(file).unwrap_or(0)), 0, 1);
                self.out
                    .push(Diagnostic::error("E0203", "a configuration file is a block of keys").at(at, ""));
                None
            }
        }
    }
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

/// Puts the entries of an included file beside those that are there: maps merge, lists are appended, all else is kept
/// twice for the reader of the block to complain about.
fn add(entries: &mut Vec<(Key, Node)>, more: &[(Key, Node)]) {
    for (key, node) in more.iter() {
        if matches!(&*key.name, "version" | "include") || key.name.starts_with("x-") {
            continue;
        }
        let known = entries.iter_mut().find(|(known, _)| known.name == key.name);
        let merged = known
            .as_ref()
            .and_then(|(_, known)| match (&known.kind, &node.kind, &*key.name) {
                (Kind::Map(a), Kind::Map(b), "listeners" | "clusters" | "policies") => {
                    Some(Kind::Map(a.iter().chain(b.iter()).cloned().collect()))
                }
                (Kind::List(a), Kind::List(b), "routes" | "tests") => {
                    Some(Kind::List(a.iter().chain(b.iter()).cloned().collect()))
                }
                _ => None,
            });
        match (known, merged) {
            (Some((_, known)), Some(kind)) => known.kind = kind,
            _ => entries.push((key.clone(), node.clone())),
        }
    }
}

/// The files a pattern names, in alphabetical order. `*` and `?` stand for parts of a file name.
fn glob(pattern: &Path) -> Vec<PathBuf> {
    let Some(name) = pattern
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
    else {
        return Vec::new();
    };
    if !name.contains(['*', '?']) {
        return if pattern.exists() {
            vec![pattern.to_path_buf()]
        } else {
            Vec::new()
        };
    }
    let parent = match pattern.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            // Hidden files are editors' and Kubernetes' own (`..data`).
            !file.starts_with('.') && fits(name.as_bytes(), file.as_bytes()) && entry.path().is_file()
        })
        .map(|entry| pattern.with_file_name(entry.file_name()))
        .collect();
    found.sort();
    found
}

/// Does a name fit a pattern of `*` and `?`? Linear in practice: one place to come back to.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || name.get(n) == Some(c) => {
                p += 1;
                n += 1;
            }
            _ => match &mut back {
                Some((star, from)) => {
                    *from += 1;
                    p = *star + 1;
                    n = *from;
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|c| *c == b'*'))
}
