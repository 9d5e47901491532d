//! Redirects: the address to which a route sends the client.
//!
//! What is not given stays as the client asked for it, the query always. The status is 308 unless another is asked
//! for: 301 and 302 turn a POST into a GET in most clients. A port is written only where it is not the default of its
//! scheme; when scheme or host change and no port is given, it is the default one, because the old port belongs to
//! the old address.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::forwarded::Scheme;
use super::path::{self, PathError};
use super::reply;
use super::rewrite::{append_query, replace_prefix};
use super::template::{Template, UnknownField, Values};

/// A redirect as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedirectSettings<'a> {
    /// `http`, `https`; `None`: the same.
    pub scheme: Option<Scheme>,
    /// A host, which may have templates; `None`: the same.
    pub host: Option<&'a str>,
    /// `None`: as the module says.
    pub port: Option<u16>,
    /// The path, which may have templates.
    pub path: Option<&'a str>,
    /// What takes the place of the matched prefix.
    pub path_prefix: Option<&'a str>,
    /// `None`: 308.
    pub status: Option<u16>,
}

/// A redirect, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    scheme: Option<Scheme>,
    host: Option<Template>,
    port: Option<u16>,
    path: PathTo,
    status: StatusCode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PathTo {
    Same,
    Whole(Template),
    Prefix(String),
}

/// Why a redirect is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// Nothing is changed.
    #[error("redirects to itself: give at least one of scheme, host, port, path and path_prefix")]
    ToItself,
    /// Not 301, 302, 303, 307 or 308.
    #[error("{0} is not a redirect; write 301, 302, 303, 307 or 308")]
    Status(u16),
    /// Both `path` and `path_prefix`.
    #[error("path and path_prefix exclude each other")]
    TwoPaths,
    /// A path that is none.
    #[error("not a path: {0}")]
    Path(#[from] PathError),
    /// A template that names nothing.
    #[error(transparent)]
    Field(#[from] UnknownField),
}

/// The request that is redirected.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// How it came.
    pub scheme: Scheme,
    /// Whom it asked, port included; may be empty in HTTP/1.0.
    pub host: &'a str,
    /// The normalised path.
    pub path: &'a str,
    /// The query, without the question mark.
    pub query: Option<&'a str>,
    /// The prefix by which the route was found.
    pub matched_prefix: Option<&'a str>,
}

impl Redirect {
    /// Compiles a redirect.
    ///
    /// # Errors
    /// When it leads nowhere or to itself.
    pub fn compile(settings: &RedirectSettings<'_>) -> Result<Self, RedirectError> {
        let code = settings.status.unwrap_or(308);
        let status = match StatusCode::from_u16(code) {
            Ok(status) if matches!(code, 301 | 302 | 303 | 307 | 308) => status,
            _ => return Err(RedirectError::Status(code)),
        };
        let path = match (settings.path, settings.path_prefix) {
            (Some(_), Some(_)) => return Err(RedirectError::TwoPaths),
            (Some(path), None) if !path.starts_with('/') && !path.starts_with("{path}") => {
                return Err(PathError::NoSlash.into());
            }
            (Some(path), None) => PathTo::Whole(Template::compile(path)?),
            (None, Some(prefix)) => PathTo::Prefix(path::normalise(prefix)?.into_owned()),
            (None, None) => PathTo::Same,
        };
        let host = settings.host.map(Template::compile).transpose()?;
        let (scheme, port) = (settings.scheme, settings.port);
        if scheme.is_none() && host.is_none() && port.is_none() && path == PathTo::Same {
            return Err(RedirectError::ToItself);
        }
        Ok(Self {
            scheme,
            host,
            port,
            path,
            status,
        })
    }

    /// Where the request is sent; `None` for a client that named no host, where only an address with a host would
    /// lead elsewhere.
    pub fn location(&self, asked: &Asked<'_>, values: &Values<'_>) -> Option<String> {
        let scheme = self.scheme.unwrap_or(asked.scheme);
        let (asked_name, asked_port) = split_port(asked.host);
        let moves = self.scheme.is_some() || self.host.is_some();
        let host = self.host.as_ref().map(|host| host.render(values));
        let port = self
            .port
            .or(if moves { None } else { asked_port })
            .filter(|port| *port != default_port(scheme));
        let name = host.as_deref().unwrap_or(asked_name);
        let mut target = match &self.path {
            PathTo::Same => asked.path.to_owned(),
            PathTo::Whole(template) => template.render(values),
            PathTo::Prefix(new) => replace_prefix(asked.path, asked.matched_prefix.unwrap_or_default(), new),
        };
        append_query(&mut target, asked.query);
        if name.is_empty() {
            // Without a host there is no absolute address to give, and the same path again would be asked for ever.
            if self.path == PathTo::Same {
                return None;
            }
            // The path alone is a valid reference, but what follows two slashes would be read as a host.
            return Some(format!("/{}", target.trim_start_matches('/')));
        }
        let mut location = String::with_capacity(64);
        location.push_str(scheme.as_str());
        location.push_str("://");
        location.push_str(name);
        if let Some(port) = port {
            location.push(':');
            location.push_str(itoa::Buffer::new().format(port));
        }
        Some(location + &target)
    }

    /// The status of the answer.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer; `None` as for [`Redirect::location`].
    pub fn response(&self, asked: &Asked<'_>, values: &Values<'_>) -> Option<Response<Bytes>> {
        Some(reply::redirect(self.status, &self.location(asked, values)?))
    }
}

const fn default_port(scheme: Scheme) -> u16 {
    match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    }
}

fn split_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::values;
    use super::*;

    const ASKED: Asked<'static> = Asked {
        scheme: Scheme::Http,
        host: "shop.example:8080",
        path: "/v1/a",
        query: Some("q=%20"),
        matched_prefix: Some("/v1"),
    };

    fn to(settings: &RedirectSettings<'_>) -> String {
        Redirect::compile(settings)
            .unwrap()
            .location(&ASKED, &values())
            .unwrap()
    }

    #[test]
    fn what_is_not_given_stays() {
        let none = RedirectSettings::default();
        assert_eq!(
            to(&RedirectSettings {
                scheme: Some(Scheme::Https),
                ..none.clone()
            }),
            "https://shop.example/v1/a?q=%20"
        );
        assert_eq!(
            to(&RedirectSettings {
                scheme: Some(Scheme::Https),
                port: Some(8443),
                ..none.clone()
            }),
            "https://shop.example:8443/v1/a?q=%20"
        );
        assert_eq!(
            to(&RedirectSettings {
                path_prefix: Some("/v2"),
                ..none.clone()
            }),
            "http://shop.example:8080/v2/a?q=%20"
        );
        assert_eq!(
            to(&RedirectSettings {
                host: Some("www.{host}"),
                path: Some("/x?y=1"),
                ..none.clone()
            }),
            "http://www.shop.example/x?y=1&q=%20"
        );
        assert_eq!(
            to(&RedirectSettings {
                port: Some(80),
                ..none
            }),
            "http://shop.example/v1/a?q=%20"
        );
    }

    #[test]
    fn a_client_that_named_no_host_gets_a_path_or_nothing() {
        let asked = Asked {
            host: "",
            query: None,
            ..ASKED
        };
        let values = Values { host: "", ..values() };
        let to =
            |settings: RedirectSettings<'_>| Redirect::compile(&settings).unwrap().location(&asked, &values);
        let path = |path| RedirectSettings {
            path: Some(path),
            ..Default::default()
        };
        assert_eq!(to(path("/x")).as_deref(), Some("/x"));
        // Two slashes would make the path a host.
        assert_eq!(to(path("/{host}{path}")).as_deref(), Some("/orders/7"));
        let secure = RedirectSettings {
            scheme: Some(Scheme::Https),
            ..Default::default()
        };
        assert_eq!(to(secure.clone()), None);
        let same_host = RedirectSettings {
            host: Some("{host}"),
            ..secure
        };
        assert_eq!(to(same_host), None);
        let host = RedirectSettings {
            host: Some("shop.example"),
            ..Default::default()
        };
        assert_eq!(to(host).as_deref(), Some("http://shop.example/v1/a"));
    }

    #[test]
    fn a_redirect_that_changes_nothing_is_refused() {
        assert_eq!(
            Redirect::compile(&RedirectSettings::default()),
            Err(RedirectError::ToItself)
        );
    }

    #[test]
    fn an_address_in_brackets_keeps_them() {
        let redirect = Redirect::compile(&RedirectSettings {
            path: Some("/x"),
            ..Default::default()
        });
        let asked = Asked {
            host: "[::1]",
            query: None,
            ..ASKED
        };
        let location = redirect.unwrap().location(&asked, &values());
        assert_eq!(location.as_deref(), Some("http://[::1]/x"));
    }

    #[test]
    fn the_answer_keeps_the_method_unless_told_otherwise() {
        let redirect = Redirect::compile(&RedirectSettings {
            path: Some("/x"),
            ..Default::default()
        })
        .unwrap();
        let response = redirect.response(&ASKED, &values()).unwrap();
        assert_eq!(response.status(), 308);
        assert_eq!(response.headers()["location"], "http://shop.example:8080/x?q=%20");
        for (settings, why) in [
            (
                RedirectSettings {
                    path: Some("/"),
                    status: Some(304),
                    ..Default::default()
                },
                RedirectError::Status(304),
            ),
            (
                RedirectSettings {
                    path: Some("x"),
                    ..Default::default()
                },
                RedirectError::Path(PathError::NoSlash),
            ),
            (
                RedirectSettings {
                    path: Some("/"),
                    path_prefix: Some("/"),
                    ..Default::default()
                },
                RedirectError::TwoPaths,
            ),
        ] {
            assert_eq!(Redirect::compile(&settings), Err(why));
        }
    }
}
