//! The session: one login for all calls, kept alive while the client lives.
//!
//! Rule: one login at a time, for all callers. A password that was refused is not tried again until its
//! file changes or some minutes have passed: vCenter locks accounts after a few failures.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use crate::{
    error::{During as _, Kind, Result, VsphereError},
    limits::OLDEST_API,
    soap::{FaultKind, MoRef, SoapRequest},
    vim::ServiceContent,
};

use super::{Client, Exchange, Inner, Password, Retry};

/// vCenter ends a session that idles for 30 minutes, some sites' after 10.
const KEEP_ALIVE: Duration = Duration::from_mins(4);
/// vCenter's default lockout counts failures of three minutes.
const AFTER_REFUSAL: Duration = Duration::from_mins(5);

/// A session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) generation: u64,
    pub(super) cookie: Option<Arc<str>>,
    pub(super) key: String,
    pub(super) content: Arc<ServiceContent>,
}

/// The one session that there is at most.
#[derive(Default)]
pub(super) struct Sessions(Mutex<State>);

#[derive(Default)]
struct State {
    generations: u64,
    now: Option<Session>,
    refused: Option<Refused>,
}

struct Refused {
    secret: Password,
    until: Instant,
    why: String,
}

impl Sessions {
    /// The session, or a new one.
    pub(super) async fn get(&self, client: &Client, deadline: Instant) -> Result<Session> {
        let locked = tokio::time::timeout_at(deadline, self.0.lock()).await;
        let mut state = locked.map_err(|_| {
            let context = format!("{}: logging in", client.account().server);
            VsphereError::new(Kind::Timeout, context, "another call's login has not ended")
        })?;
        if let Some(session) = &state.now {
            return Ok(session.clone());
        }
        let session = log_in(client, &mut state, deadline).await?;
        state.now = Some(session.clone());
        keep_alive(Arc::downgrade(&client.0), session.generation);
        Ok(session)
    }

    /// Forgets the session of this generation: the server did.
    pub(super) async fn forget(&self, generation: u64) {
        let mut state = self.0.lock().await;
        if state.now.as_ref().is_some_and(|session| session.generation == generation) {
            state.now = None;
        }
    }

    /// Takes the session away.
    pub(super) async fn take(&self) -> Option<Session> {
        self.0.lock().await.now.take()
    }
}

async fn log_in(client: &Client, state: &mut State, deadline: Instant) -> Result<Session> {
    let account = client.account();
    let context = || format!("{}: logging in as {}", account.server, account.user);
    let secret = Password::read(&account.password_file).await?;
    if let Some(refused) = &state.refused
        && refused.secret == secret
        && Instant::now() < refused.until
    {
        let why = format!(
            "{} (not tried again for some minutes, so that the account is not locked; change the password's file \
             to have it tried at once)",
            refused.why
        );
        return Err(VsphereError::new(Kind::Refused, context(), why));
    }
    let mut retry = Retry::new(deadline);
    loop {
        match attempt(client, &secret, state.generations + 1).await {
            Ok(session) => {
                state.generations = session.generation;
                state.refused = None;
                return Ok(session);
            }
            Err(Exchange { failure, .. }) if failure.fault() == Some(&FaultKind::InvalidLogin) => {
                let why = format!("{}{}", failure.cause, hint(&account.user));
                state.refused =
                    Some(Refused { secret, until: Instant::now() + AFTER_REFUSAL, why: why.clone() });
                return Err(VsphereError::new(Kind::Refused, context(), why));
            }
            // A login that was carried out and whose answer was lost is a session that idles and ends.
            Err(Exchange { failure, may_pass, .. }) => {
                if !may_pass || !retry.wait().await {
                    return Err(failure).during(context);
                }
            }
        }
    }
}

/// What to look at when a login is refused.
fn hint(user: &str) -> &'static str {
    if user.contains('@') || user.contains('\\') {
        "; see that the account is not locked and has a role on the inventory"
    } else {
        "; the user is named without a domain, which vCenter answers in the same way: write it with its domain, as in \
         administrator@vsphere.local"
    }
}

async fn attempt(
    client: &Client,
    secret: &Password,
    generation: u64,
) -> std::result::Result<Session, Exchange> {
    let within = client.0.patience.exchange;
    let unusable = |failure: VsphereError| Exchange { failure, was_sent: true, may_pass: false };
    let ask = SoapRequest::new("RetrieveServiceContent", &MoRef::service_instance(), |arguments| arguments);
    let (answer, cookie) = client.post(&ask, OLDEST_API, None, within).await?;
    let content = ServiceContent::read(&answer).map_err(unusable)?;
    let request = SoapRequest::new("Login", &content.session_manager, |arguments| {
        arguments.text("userName", &client.account().user).text("password", secret.expose())
    });
    let version = content.about.api_version.clone();
    let (answer, set) = client.post(&request, &version, cookie.as_deref(), within).await?;
    let Some(key) = answer.text_at("returnval.key") else {
        return Err(unusable(VsphereError::failed("Login", "the answer names no session")));
    };
    Ok(Session {
        generation,
        cookie: set.or(cookie).map(Into::into),
        key: key.to_owned(),
        content: Arc::new(content),
    })
}

/// Asks for the time now and then, until the client or the session is gone.
fn keep_alive(client: Weak<Inner>, generation: u64) {
    tokio::spawn(async move {
        loop {
            sleep(KEEP_ALIVE).await;
            let Some(client) = client.upgrade().map(Client) else { return };
            let session = client.0.sessions.0.lock().await.now.clone();
            let Some(session) = session.filter(|session| session.generation == generation) else { return };
            let request = SoapRequest::new("CurrentTime", &MoRef::service_instance(), |arguments| arguments);
            if let Err(error) = client.exchange(Some(&session), &request, client.0.patience.exchange).await {
                tracing::debug!(error = %error.failure, "keeping the session alive");
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::hint;

    #[test]
    fn a_user_without_a_domain_is_told_so() {
        assert!(hint("administrator").contains("administrator@vsphere.local"));
        assert!(!hint("administrator@vsphere.local").contains("without a domain"));
        assert!(!hint("VSPHERE.LOCAL\\administrator").contains("without a domain"));
    }
}
