//! The servers of an endpoint list, and which of them is in use.
//!
//! * **E1** All calls and the stream of the session go to one server, the one in use. Only the task of the session goes on to another, and
//!   never while its stream stands: a session, its opens and its stagings are of one server.
//! * **E2** A call under way to a server that was left ends at once, like one whose connection broke: what may be repeated is repeated
//!   with the next server, and a commit is settled there by its id (P5).
//! * **E3** A broken stream proves nothing about its server: that one is tried again before the next one is.
//! * **E4** All of them have to serve one store. Another store is another incarnation, which ends what is open (S4).

use tokio::sync::watch;

use super::connect::Stub;
use super::lane::Lanes;
use crate::error::CallError;

/// A server of the list.
pub(super) struct Server {
    /// Its endpoint.
    pub(super) endpoint: String,
    pub(super) stub: Stub,
    /// On connections to it.
    pub(super) lanes: Lanes,
}

/// See the file's header.
pub(super) struct Way {
    /// At least one.
    servers: Vec<Server>,
    in_use: watch::Sender<usize>,
}

/// A server at the moment at which a call begins.
pub(super) struct Chosen<'a> {
    pub(super) server: &'a Server,
    in_use: watch::Receiver<usize>,
    is_alone: bool,
}

impl Way {
    /// `first` is used first.
    pub(super) fn new(first: Server, others: Vec<Server>) -> Self {
        let mut servers = vec![first];
        servers.extend(others);
        Self {
            servers,
            in_use: watch::Sender::new(0),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    /// Which one is in use.
    pub(super) fn index(&self) -> usize {
        *self.in_use.borrow()
    }

    /// The server in use.
    pub(super) fn server(&self) -> &Server {
        &self.servers[*self.in_use.borrow() % self.servers.len()]
    }

    /// The server in use, for a call.
    pub(super) fn choose(&self) -> Chosen<'_> {
        let mut in_use = self.in_use.subscribe();
        let index = *in_use.borrow_and_update();
        Chosen {
            server: &self.servers[index % self.servers.len()],
            in_use,
            is_alone: self.servers.len() == 1,
        }
    }

    /// Goes on to the next server (E1, E2).
    pub(super) fn go_on(&self) {
        if self.servers.len() > 1 {
            self.in_use
                .send_modify(|index| *index = (*index + 1) % self.servers.len());
            for server in &self.servers {
                server.lanes.clear();
            }
        }
    }
}

impl Chosen<'_> {
    /// Answers when another server is in use (E2).
    pub(super) async fn left(&mut self) -> CallError {
        if self.is_alone || self.in_use.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        CallError::left(&self.server.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::connect::stub;

    fn way(endpoints: &[&str]) -> Way {
        let mut servers = endpoints.iter().map(|endpoint| Server {
            endpoint: (*endpoint).to_owned(),
            stub: stub(endpoint, None).expect("a stub"),
            lanes: Lanes::default(),
        });
        let first = servers.next().expect("one");
        let others = servers.collect();
        Way::new(first, others)
    }

    #[tokio::test]
    async fn e2_a_call_ends_when_its_server_is_left() {
        let way = way(&["http://a:1", "http://b:1"]);
        let mut call = way.choose();
        assert_eq!(call.server.endpoint, "http://a:1");
        way.go_on();
        let error = call.left().await;
        assert!(error.is_transient() && !error.explicit, "{error:?}");
        assert_eq!(way.choose().server.endpoint, "http://b:1");
        way.go_on();
        assert_eq!(way.server().endpoint, "http://a:1");
        // A call that began now is under way still.
        let mut call = way.choose();
        let soon = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(soon, call.left()).await.is_err());
    }

    #[tokio::test]
    async fn the_only_server_is_never_left() {
        let way = way(&["http://a:1"]);
        let mut call = way.choose();
        way.go_on();
        let soon = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(soon, call.left()).await.is_err());
        assert_eq!(way.server().endpoint, "http://a:1");
    }
}
