//! Threads that send requests and wait for answers, kept for the next request. A request is sent from a thread of its own so that it can be
//! left behind when its server falls silent; starting that thread anew took a third of a small request's processor time.

use crate::http::{Client, Outcome};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One request, and the way back to the thread that sends it.
struct Errand {
    client: Arc<Client>,
    path: String,
    body: Vec<u8>,
    answer: Sender<Outcome>,
    this_thread: Sender<Errand>,
}

/// The threads that wait for work. There are as many as requests were under way at once; they end with this.
#[derive(Default)]
pub(super) struct Senders {
    idle: Mutex<Vec<Sender<Errand>>>,
}

impl Senders {
    /// Posts `body`, JSON, by an idle thread or a new one. Whoever drops the receiver leaves the request behind.
    pub(super) fn post(self: &Arc<Self>, client: &Arc<Client>, path: &str, body: Vec<u8>) -> Receiver<Outcome> {
        let (answer, receive) = mpsc::channel();
        let idle = self.lock().pop();
        let thread = idle.unwrap_or_else(|| start(Arc::downgrade(self)));
        let (client, path, this_thread) = (Arc::clone(client), path.to_owned(), thread.clone());
        // A thread that died of a panic took the answer's sender with it: the receiver says that the connection is lost.
        let _ = thread.send(Errand { client, path, body, answer, this_thread });
        receive
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Sender<Errand>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start(senders: Weak<Senders>) -> Sender<Errand> {
    let (send, receive) = mpsc::channel::<Errand>();
    std::thread::spawn(move || {
        for Errand { client, path, body, answer, this_thread } in receive {
            let outcome = client.post_json(&path, &body);
            // Idle before the answer is out: whoever gets it asks again at once.
            if let Some(senders) = senders.upgrade() {
                senders.lock().push(this_thread);
            }
            let _ = answer.send(outcome);
        }
    });
    send
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    /// Answers `/v1/well` with `{}` and says nothing to anything else.
    fn serve(stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        loop {
            let (mut path, mut length) = (None, 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                path = path.or_else(|| line.split(' ').nth(1).map(String::from));
                length =
                    line.to_lowercase().strip_prefix("content-length: ").map_or(length, |n| n.trim().parse().unwrap());
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            if path.as_deref() == Some("/v1/well") {
                let mut out = stream;
                out.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
                    .unwrap();
            }
        }
    }

    #[test]
    fn a_thread_is_kept_for_the_next_request_and_one_that_is_left_behind_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || serve(&stream));
            }
        });
        let senders = Arc::new(Senders::default());
        let client = Arc::new(Client::new(&base, 4, Duration::from_secs(60)));
        let post = |path| senders.post(&client, path, b"{}".to_vec());
        let is_well = |outcome| matches!(outcome, Ok(Outcome::Json(_)));
        for _ in 0..3 {
            assert!(is_well(post("/well").recv()));
            assert_eq!(senders.lock().len(), 1);
        }
        drop(post("/silent"));
        assert_eq!(senders.lock().len(), 0);
        for _ in 0..3 {
            assert!(is_well(post("/well").recv()));
            assert_eq!(senders.lock().len(), 1);
        }
        let waiting = post("/silent");
        drop(senders);
        assert!(waiting.recv_timeout(Duration::from_millis(50)).is_err());
    }
}
