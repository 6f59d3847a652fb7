//! The accept loop: our own over hyper, because axum's holds half-sent requests for ever. Connections, headers, bodies and requests
//! are bounded; on a signal nothing new is taken and what runs is ended within a bound.

use crate::app::{App, router};
use crate::reader::WithReader;
use aloe_engine::{Engine, Queue};
use aloe_record::Cancel;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How often a signal, or the end of the worker, is looked for.
const POLL: Duration = Duration::from_millis(20);

/// How long answers that were broken off have to reach their clients.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Bytes of a request's headers.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// What a server takes at most, and how long it waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that wait or run, each prompt of a request counted; one more is told to come again later (429).
    pub max_requests: usize,
    /// Connections; one more waits until another one ends.
    pub max_connections: usize,
    /// Bytes of a request's body (413).
    pub max_body_bytes: u64,
    /// Bytes of the bodies of all requests that are not answered yet (429).
    pub max_held_bytes: u64,
    /// For the headers of a request to come, the wait for the next one of a connection included. Longer than the 15 s for which
    /// clients keep an idle connection, so that it is they who end it.
    pub header_timeout: Duration,
    /// For the body of a request to come (408).
    pub body_timeout: Duration,
    /// For a client to read on: one that does not takes a connection, and what it asked for, from others.
    pub write_timeout: Duration,
    /// For what runs to end after a signal.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_requests: 1024,
            max_connections: 2048,
            max_body_bytes: 4 << 20,
            max_held_bytes: 128 << 20,
            header_timeout: Duration::from_secs(20),
            body_timeout: Duration::from_secs(20),
            write_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(25),
        }
    }
}

/// How a model is served.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// The name under which it is served.
    pub name: String,
    /// Every route but `/health` wants it as `Authorization: Bearer KEY`.
    pub key: Option<String>,
    /// Bounds.
    pub limits: Limits,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// Host and port as given.
        address: String,
        /// What is wrong and what to try.
        reason: String,
    },
    /// The model cannot be served, or failed.
    #[error(transparent)]
    Engine(#[from] aloe_engine::Error),
    /// Threads or the network gave up.
    #[error("the server stopped: {0}")]
    Stopped(String),
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Listens on host and port; port 0 takes a free one. An address that others can reach is refused without a key: whoever reaches it
    /// could use the machine.
    pub fn bind(host: &str, port: u16, key: Option<&str>) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Listen { address: format!("{host}:{port}"), reason };
        let addresses: Vec<SocketAddr> =
            (host, port).to_socket_addrs().map_err(|error| refuse(error.to_string()))?.collect();
        if key.is_none() && addresses.iter().any(|address| !address.ip().is_loopback()) {
            let reason = "others can reach it, and the server has no key; set ALOE_API_KEY, or listen on 127.0.0.1";
            return Err(refuse(reason.to_owned()));
        }
        let listen = || -> std::io::Result<Self> {
            let listener = TcpListener::bind(addresses.as_slice())?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        listen().map_err(|error| refuse(error.to_string()))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `cancel` is requested; then nothing new is taken, and what runs is ended within the bound of the options. `ready` is
    /// told once requests are answered.
    pub fn run(
        self,
        engine: &Engine,
        options: &ServeOptions,
        cancel: &Cancel,
        ready: impl FnOnce(SocketAddr),
    ) -> Result<(), Error> {
        let mut limits = options.limits;
        limits.max_connections = connections_at_most(limits.max_connections);
        let queue = Arc::new(Queue::new(limits.max_requests));
        let app = App::new(engine, Arc::clone(&queue), &options.name, options.key.as_deref(), limits, cancel.clone());
        let app = Arc::new(app.ok_or_else(|| aloe_engine::Error::Open {
            model: engine.identity().name.clone(),
            reason: "servers answer for it already; serve a folder or a .gguf file".to_owned(),
        })?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(4)
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| Error::Stopped(error.to_string()))?;
        // Ends the worker at its next token, whatever waits.
        let end = Cancel::default();
        let routes = router(&app);
        drop(app);
        let worked = std::thread::scope(|scope| {
            let worker = scope.spawn(|| engine.serve(&queue, &end));
            let is_over = || cancel.is_requested() || worker.is_finished();
            let served = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(self.listener)?;
                ready(self.address);
                let connections = accept(listener, routes, limits, is_over).await;
                queue.close();
                connections.end(limits.drain_timeout, || worker.is_finished(), &queue, &end).await;
                Ok::<(), std::io::Error>(())
            });
            queue.close();
            end.request(1);
            (served, worker.join())
        });
        runtime.shutdown_timeout(Duration::from_millis(100));
        match worked {
            (Err(error), _) => Err(Error::Stopped(error.to_string())),
            (_, Err(_)) => Err(Error::Stopped("the model's thread broke off; see above".to_owned())),
            (_, Ok(Err(aloe_engine::Error::Record(aloe_record::Error::Cancelled)) | Ok(()))) => Ok(()),
            (_, Ok(Err(error))) => Err(error.into()),
        }
    }
}

/// Files that the process has open beside its connections.
const OTHER_FILES: u64 = 64;

/// As many connections as were asked for, or as there may be open files: their soft limit is raised as far as it must and may be.
fn connections_at_most(asked: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = asked as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current.filter(|current| *current < wanted) else { return asked };
    let raised = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let is_raised = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }).is_ok();
    (if is_raised { raised } else { current }).saturating_sub(OTHER_FILES).max(1) as usize
}

/// Connections that were taken.
struct Connections {
    places: Arc<Semaphore>,
    n_places: usize,
    stopping: watch::Sender<bool>,
}

/// Takes connections until `is_over`.
async fn accept(
    listener: tokio::net::TcpListener,
    routes: Router,
    limits: Limits,
    is_over: impl Fn() -> bool,
) -> Connections {
    let n_places = limits.max_connections;
    let connections =
        Connections { places: Arc::new(Semaphore::new(n_places)), n_places, stopping: watch::Sender::new(false) };
    while !is_over() {
        let next = async {
            let place = Arc::clone(&connections.places).acquire_owned().await.ok()?;
            match listener.accept().await {
                Ok((stream, _)) => Some((stream, place)),
                Err(_) => {
                    // No more files may be open, or the client was gone before it was taken: others may end meanwhile.
                    tokio::time::sleep(POLL).await;
                    None
                }
            }
        };
        if let Ok(Some((stream, place))) = tokio::time::timeout(POLL, next).await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(connection(stream, place, routes.clone(), limits, connections.stopping.subscribe()));
        }
    }
    connections
}

/// Answers the requests of one connection.
async fn connection(
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    routes: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let answers = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(
            TokioIo::new(WithReader::new(stream, limits.write_timeout)),
            TowerToHyperService::new(routes),
        );
    let mut answers = pin!(answers);
    let is_stopping = async {
        // An error is the server's end as well.
        let _ = stopping.wait_for(|&is| is).await;
    };
    // Either way: a connection that breaks off has nobody to tell.
    tokio::select! {
        _ = answers.as_mut() => return,
        () = is_stopping => answers.as_mut().graceful_shutdown(),
    }
    let _ = answers.await;
}

impl Connections {
    /// Lets them end: each after the answer it waits for. When time is up the answers are broken off.
    async fn end(self, within: Duration, has_ended: impl Fn() -> bool, queue: &Queue, end: &Cancel) {
        self.stopping.send_replace(true);
        let until = Instant::now() + within;
        while Instant::now() < until && !self.are_gone() {
            tokio::time::sleep(POLL).await;
            if has_ended() {
                queue.abandon();
            }
        }
        end.request(1);
        queue.abandon();
        let until = Instant::now() + LAST_WORDS;
        while Instant::now() < until && !self.are_gone() {
            tokio::time::sleep(POLL).await;
        }
    }

    fn are_gone(&self) -> bool {
        self.places.available_permits() == self.n_places
    }
}
