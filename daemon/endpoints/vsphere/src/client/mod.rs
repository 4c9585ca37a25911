//! A client of one vCenter or ESXi: a bounded number of connections, one session, calls that bear being
//! repeated.
//!
//! Rule: a call that may have effects goes out once. It is repeated only where it surely was not carried out:
//! the connection was not made, or the session had ended. Calls that only read are repeated within their
//! deadline.
//!
//! ```text
//! call ─▶ session (log in if there is none) ─▶ transport (TLS, trust, HTTP/1.1) ─▶ vCenter
//!   ▲ NotAuthenticated: log in again, once │ 503, lost connection: wait, again if it only reads
//!   └──────────────────────────────────────┘
//! ```

mod retry;
mod secret;
mod session;
mod transport;
mod trust;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use secret::Password;
pub use trust::{SeenCertificate, Thumbprint, ThumbprintError, Trust};

use crate::{
    error::{Kind, Result, VsphereError},
    soap::{Answer, Element, FaultKind, SoapRequest},
    vim::ServiceContent,
};

use retry::Retry;
use session::{Session, Sessions};
use transport::Transport;

/// Where a server is, who asks, and what is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Host and, if it is not 443, port.
    pub server: Server,
    pub user: String,
    pub password_file: std::path::PathBuf,
    pub trust: Trust,
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        match (host.contains(':'), self.port) {
            (true, 443) => write!(f, "[{host}]"),
            (true, port) => write!(f, "[{host}]:{port}"),
            (false, 443) => f.write_str(host),
            (false, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// How long a call may take in all.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one exchange.
    pub exchange: Duration,
    /// For a call that only reads, with its repetitions. A vCenter's restart takes longer; what asked is
    /// told, and asks again.
    pub whole: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { exchange: Duration::from_mins(1), whole: Duration::from_mins(3) }
    }
}

/// Whether a call may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It only reads, or repeating it changes nothing.
    Safe,
    /// It has effects.
    Once,
}

/// A client; clones share the session.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    account: Account,
    patience: Patience,
    transport: Transport,
    sessions: Sessions,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({} as {})", self.0.account.server, self.0.account.user)
    }
}

impl Client {
    /// Judges what can be judged without asking the server.
    pub fn new(account: Account, patience: Patience) -> Result<Self> {
        let transport = Transport::new(&account)?;
        Ok(Self(Arc::new(Inner { account, patience, transport, sessions: Sessions::default() })))
    }

    pub fn account(&self) -> &Account {
        &self.0.account
    }

    /// The certificate that the server last showed and that was trusted.
    pub fn certificate(&self) -> Option<SeenCertificate> {
        self.0.transport.seen()
    }

    /// What the server is; logs in if needed.
    pub async fn content(&self) -> Result<Arc<ServiceContent>> {
        Ok(self.session(Instant::now() + self.0.patience.whole).await?.content)
    }

    /// The session's generation: what belongs to a session (views, filters) is gone when it changes.
    pub async fn generation(&self) -> Result<u64> {
        Ok(self.session(Instant::now() + self.0.patience.whole).await?.generation)
    }

    /// The session's key, for questions about itself.
    pub async fn session_key(&self) -> Result<String> {
        Ok(self.session(Instant::now() + self.0.patience.whole).await?.key)
    }

    /// Calls a method, and answers its response element.
    pub async fn call(&self, request: &SoapRequest, repeat: Repeat) -> Result<Element> {
        self.call_within(request, repeat, self.0.patience.exchange).await
    }

    /// The same, with another deadline for one exchange.
    pub async fn call_within(
        &self,
        request: &SoapRequest,
        repeat: Repeat,
        exchange: Duration,
    ) -> Result<Element> {
        let whole = self.0.patience.whole.max(exchange);
        let deadline = Instant::now() + whole;
        let mut retry = Retry::new(deadline);
        let mut logged_in_again = false;
        loop {
            let session = self.session(deadline).await?;
            let error = match self.exchange(Some(&session), request, exchange).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if error.failure.fault() == Some(&FaultKind::NotAuthenticated) && !logged_in_again {
                tracing::info!(server = %self.0.account.server, "the session has ended; logging in again");
                self.0.sessions.forget(session.generation).await;
                logged_in_again = true;
                continue;
            }
            let may = !error.was_sent || error.may_pass && repeat == Repeat::Safe;
            if !may || !error.may_pass || !retry.wait().await {
                return Err(error.failure);
            }
            let why = error.failure.to_string();
            tracing::debug!(server = %self.0.account.server, method = request.method, why, "trying again");
        }
    }

    /// Forgets the session of this generation, which the server has ended without saying so by a fault: the
    /// next call logs in again.
    pub(crate) async fn forget(&self, generation: u64) {
        self.0.sessions.forget(generation).await;
    }

    /// Ends the session; the next call begins another.
    pub async fn log_out(&self) {
        let Some(session) = self.0.sessions.take().await else { return };
        let manager = session.content.session_manager.clone();
        let request = SoapRequest::new("Logout", &manager, |arguments| arguments);
        if let Err(error) = self.exchange(Some(&session), &request, Duration::from_secs(5)).await {
            tracing::debug!(error = %error.failure, "the session could not be ended; it ends when it idles");
        }
    }

    /// The session; without one, logs in. Trouble on the way is waited out until the deadline.
    async fn session(&self, deadline: Instant) -> Result<Session> {
        self.0.sessions.get(self, deadline).await
    }

    /// One exchange.
    async fn exchange(
        &self,
        session: Option<&Session>,
        request: &SoapRequest,
        within: Duration,
    ) -> std::result::Result<Element, Exchange> {
        let version =
            session.map_or(crate::limits::OLDEST_API, |session| session.content.about.api_version.as_str());
        let cookie = session.and_then(|session| session.cookie.as_deref());
        let (answer, _) = self.post(request, version, cookie, within).await?;
        Ok(answer)
    }

    /// One exchange, with the cookie that the server set.
    async fn post(
        &self,
        request: &SoapRequest,
        version: &str,
        cookie: Option<&str>,
        within: Duration,
    ) -> std::result::Result<(Element, Option<String>), Exchange> {
        let context = || format!("{}: {}", self.0.account.server, request.method);
        let posted = self.0.transport.post(version, cookie, request.envelope(), within).await;
        let reply = posted.map_err(|error| Exchange {
            may_pass: error.may_pass(),
            was_sent: error.was_sent(),
            failure: error.into_vsphere(context()),
        })?;
        let failed = |why: String, may_pass| Exchange {
            failure: VsphereError::new(Kind::Failed, context(), why),
            was_sent: true,
            may_pass,
        };
        match reply.status {
            200 | 500 => {}
            // A vCenter that starts, or whose service is down, answers so for minutes.
            502..=504 => {
                let why = format!("the server answers HTTP {}: its service is not up", reply.status);
                let failure = VsphereError::new(Kind::Unreachable, context(), why);
                return Err(Exchange { failure, was_sent: true, may_pass: true });
            }
            status => {
                let why = format!("the server answers HTTP {status}: is it a vCenter or an ESXi?");
                let failure = VsphereError::new(Kind::Refused, context(), why);
                return Err(Exchange { failure, was_sent: true, may_pass: false });
            }
        }
        match crate::soap::read_answer(&reply.body, request.method) {
            Ok(Answer::Response(element)) if reply.status == 200 => Ok((element, reply.cookie)),
            Ok(Answer::Response(_)) => Err(failed("a result came with HTTP 500".to_owned(), false)),
            Ok(Answer::Fault(fault)) => Err(Exchange {
                failure: VsphereError::of_fault(context(), fault),
                was_sent: true,
                may_pass: false,
            }),
            // A proxy's page instead of an answer: it has HTTP 500 and no envelope.
            Err(error) => Err(failed(error.to_string(), reply.status == 500)),
        }
    }
}

/// A failed exchange.
struct Exchange {
    failure: VsphereError,
    /// Whether the server may have read the request.
    was_sent: bool,
    /// Whether the same request may succeed in a moment.
    may_pass: bool,
}
