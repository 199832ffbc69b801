//! One connection to a collector. Names are looked up by a resolver of our own, because getaddrinfo() loads code of the
//! machine's libc, which a static binary cannot rely on, and would need a thread.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hickory_resolver::{TokioResolver, config::ResolverConfig, net::runtime::TokioRuntimeProvider};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, crypto::ring, pki_types::ServerName},
};

use super::settings::Settings;

/// No answer says more.
const MAX_ANSWER: usize = 64 << 10;
/// A collector that asks for more patience is asked again after this.
const MAX_PATIENCE: Duration = Duration::from_secs(300);

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With the answer's body.
    Taken(Bytes),
    /// Worth trying again, at the earliest after the time that the collector asks for.
    Later { why: String, after: Option<Duration> },
    /// Would be refused again.
    Never { why: String },
}

/// Talks to one collector, over a connection that is kept.
pub struct Client {
    settings: Settings,
    tls: Option<TlsConnector>,
    /// As it was when it could be read last.
    resolver: Option<TokioResolver>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub fn new(settings: Settings) -> Result<Self, String> {
        let tls = settings.roots.clone().map(|roots| {
            let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
            versions.map(|builder| TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())))
        });
        let tls = tls.transpose().map_err(|error| error.to_string())?;
        Ok(Self { settings, tls, resolver: None, connection: None })
    }

    /// Sends an encoded request to `/v1/{signal}`.
    pub async fn post(&mut self, signal: &str, body: Bytes) -> Outcome {
        let later = |why: String| Outcome::Later { why, after: None };
        // In the request's time: a connection whose request was given up is of no use.
        let connection = self.connection.take().filter(|connection| !connection.is_closed());
        match timeout(self.settings.timeout, self.exchange(connection, signal, body)).await {
            Ok(Ok((connection, outcome))) => {
                self.connection = Some(connection);
                outcome
            }
            Ok(Err(why)) => later(why),
            Err(_) => later(format!("no answer within {:?}", self.settings.timeout)),
        }
    }

    async fn exchange(
        &mut self,
        connection: Option<SendRequest<Full<Bytes>>>,
        signal: &str,
        body: Bytes,
    ) -> Result<(SendRequest<Full<Bytes>>, Outcome), String> {
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        connection.ready().await.map_err(words)?;
        let mut request = Request::post(format!("{}/v1/{signal}", self.settings.path)).body(Full::new(body)).map_err(words)?;
        let headers = request.headers_mut();
        headers.extend(self.settings.headers.clone());
        headers.insert(header::HOST, self.settings.authority.parse().map_err(words)?);
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-protobuf"));
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static(concat!("rsttrace/", env!("CARGO_PKG_VERSION"))));
        if self.settings.compress {
            headers.insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
        }
        let response = connection.send_request(request).await.map_err(words)?;
        let outcome = outcome_of(response).await?;
        Ok((connection, outcome))
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, String> {
        let mut problem = "the name has no address".to_owned();
        for address in self.addresses().await? {
            match TcpStream::connect(address).await {
                Ok(stream) => return self.greet(stream).await,
                Err(error) => problem = format!("{address}: {error}"),
            }
        }
        Err(problem)
    }

    /// `/etc/hosts` and `/etc/resolv.conf` are read each time: a connection is kept, and both may have changed by the next.
    async fn addresses(&mut self) -> Result<Vec<SocketAddr>, String> {
        let Settings { host, port, .. } = &self.settings;
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, *port)]);
        }
        let resolver = match (TokioResolver::builder_tokio(), self.resolver.take()) {
            (Ok(read), _) => read.build().map_err(words)?,
            (Err(_), Some(known)) => known,
            // There are the names of /etc/hosts.
            (Err(_), None) => {
                TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default()).build().map_err(words)?
            }
        };
        let found = self.resolver.insert(resolver).lookup_ip(host.as_str()).await.map_err(words)?;
        Ok(found.iter().map(|address| SocketAddr::new(address, *port)).collect())
    }

    async fn greet(&self, stream: TcpStream) -> Result<SendRequest<Full<Bytes>>, String> {
        match &self.tls {
            None => talk(stream).await,
            Some(tls) => {
                let name = ServerName::try_from(self.settings.host.clone()).map_err(words)?;
                talk(tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?).await
            }
        }
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<SendRequest<Full<Bytes>>, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(words)?;
    // Ends with the connection, or when the sender is dropped; what went wrong the sender is told.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}

/// Which answers are worth another try is OTLP's specification's.
async fn outcome_of(response: Response<Incoming>) -> Result<Outcome, String> {
    let status = response.status();
    let after = response.headers().get(header::RETRY_AFTER).and_then(|value| patience(value.to_str().ok()?, Timestamp::now()));
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| error.to_string())?.to_bytes();
    let why = format!("HTTP status {}", status.as_u16());
    Ok(match status {
        status if status.is_success() => Outcome::Taken(body),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Outcome::Later { why, after }
        }
        _ => Outcome::Never { why },
    })
}

/// `Retry-After`: seconds, or a date.
fn patience(value: &str, now: Timestamp) -> Option<Duration> {
    let asked = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
            Duration::try_from(date.duration_since(now)).unwrap_or_default()
        }
    };
    Some(asked.min(MAX_PATIENCE))
}

/// With what lies beneath: "connection error" alone helps nobody.
fn words(error: impl std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words += &format!(": {error}");
        source = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_may_ask_for_patience_in_two_ways() {
        let now: Timestamp = "1994-11-06T08:49:30Z".parse().unwrap();
        assert_eq!(patience("7", now), Some(Duration::from_secs(7)));
        assert_eq!(patience("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(7)));
        assert_eq!(patience("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO));
        assert_eq!(patience("18446744073709551615", now), Some(MAX_PATIENCE));
        assert_eq!(patience("soon", now), None);
    }
}
