//! Several loopback servers of one model, some of which are busy, break off, answer garbage or fall silent: every request has
//! its own answer, once, and a dead server is left alone.

use crate::{Engine, EngineOptions, GenerateRequest, GenerateResult, Prompt, Sampling};
use aloe_record::{Cancel, Progress};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a mock does with its n-th request (from 0).
#[derive(Clone, Copy, PartialEq)]
enum Act {
    /// Answers with the prompt's ids as text, after its service time.
    Answer,
    /// A status with a header line.
    Status(&'static str, &'static str),
    /// Closes the connection without an answer.
    Reset,
    /// Half an answer.
    Half,
    /// A page.
    Page,
    /// Keeps the connection and says nothing, until the test ends.
    Hang,
}

type Behaviour = dyn Fn(usize, Duration) -> Act + Send + Sync;

/// A loopback server. The behaviour is also asked, with the number so far, when it is to list its models.
struct Mock {
    base: String,
    /// When each completion request came, since the start.
    asked: Arc<Mutex<Vec<Duration>>>,
}

impl Mock {
    fn start(service: Duration, behaviour: impl Fn(usize, Duration) -> Act + Send + Sync + 'static) -> Self {
        Self::listing("weights", service, behaviour)
    }

    fn listing(
        root: &'static str,
        service: Duration,
        behaviour: impl Fn(usize, Duration) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, started, behaviour): (_, _, Arc<Behaviour>) =
            (Arc::clone(&asked), Instant::now(), Arc::new(behaviour));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, behaviour) = (Arc::clone(&seen), Arc::clone(&behaviour));
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(&stream);
                    while serve(&mut reader, &stream, root, service, &*behaviour, &seen, started).is_some() {}
                });
            }
        });
        Self { base, asked }
    }

    fn n_asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn serve(
    reader: &mut BufReader<&TcpStream>,
    mut stream: &TcpStream,
    root: &str,
    service: Duration,
    behaviour: &Behaviour,
    seen: &Mutex<Vec<Duration>>,
    started: Instant,
) -> Option<()> {
    let (path, body) = read_request(reader)?;
    let is_list = path.ends_with("/models");
    // The canary is answered as all others, and not counted.
    let is_counted = !is_list && body["seed"] != super::canary::SEED;
    let at = {
        let mut seen = seen.lock().unwrap();
        if is_counted {
            seen.push(started.elapsed());
        }
        seen.len().saturating_sub(usize::from(is_counted))
    };
    let act = behaviour(at, started.elapsed());
    let answer = if is_list {
        json!({"data": [{"id": "m", "root": root}]}).to_string()
    } else {
        std::thread::sleep(service);
        let text = body["prompt"].to_string();
        json!({"model": "m", "choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}).to_string()
    };
    let (status, header, answer) = match act {
        Act::Reset if is_list => return None,
        Act::Answer | Act::Reset => ("200 OK", "", answer),
        Act::Status(status, header) => (status, header, "{}".to_owned()),
        Act::Half => ("200 OK", "", answer[..answer.len() / 2].to_owned()),
        Act::Page => ("200 OK", "", "<html>Welcome</html>".to_owned()),
        Act::Hang => {
            std::thread::sleep(Duration::from_secs(3600));
            return None;
        }
    };
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    let head = format!("HTTP/1.1 {status}\r\n{header}content-length: {}\r\n\r\n", answer.len());
    // A reset comes in the middle of the answer.
    let sent = if act == Act::Reset { &answer[..answer.len() / 3] } else { &answer };
    stream.write_all(format!("{head}{sent}").as_bytes()).ok()?;
    if act == Act::Reset {
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return None;
    }
    Some(())
}

/// Path and body of a request; `None` when the client is gone.
pub(super) fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<(String, Value)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|&n| n > 0)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&n| n > 0)?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    Some((path, serde_json::from_slice(&body).unwrap_or_default()))
}

/// An engine over the mocks, or `None` where the tokenizer's data is not at hand.
fn open(mocks: &[Mock], timeout: Duration) -> Option<crate::Result<Engine>> {
    let Ok(data) = std::env::var("ALOE_DATA") else {
        assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_DATA is not set");
        eprintln!("not run: ALOE_DATA is not set");
        return None;
    };
    let tokenizer = Some(PathBuf::from(data).join("models/stories260K"));
    let options = EngineOptions { tokenizer, request_timeout: timeout, ..EngineOptions::default() };
    let bases: Vec<&str> = mocks.iter().map(|mock| mock.base.as_str()).collect();
    Some(Engine::open(&format!("{}#m", bases.join(",")), &options))
}

fn requests(n: usize) -> Vec<GenerateRequest> {
    let request = |at: usize| GenerateRequest {
        id: at.to_string(),
        prompt: Prompt::Ids(vec![1, (at % 500) as u32, (at / 500) as u32]),
        n: 1,
        sampling: Sampling::greedy(4),
    };
    (0..n).map(request).collect()
}

/// Generates for `n` requests and asserts that each has its own answer and was counted once. Returns the seconds it took.
fn check(engine: &Engine, n: usize) -> f64 {
    let (requests, progress) = (requests(n), Progress::silent());
    progress.set_total(n as u64);
    let started = Instant::now();
    let results: Vec<GenerateResult> = engine.generate(&requests, &progress, &Cancel::default()).unwrap();
    let elapsed_s = started.elapsed().as_secs_f64();
    assert_eq!((results.len(), progress.state().0), (n, n as u64), "lost, or counted twice");
    for (request, result) in requests.iter().zip(&results) {
        let Prompt::Ids(ids) = &request.prompt else { panic!("not ids") };
        assert_eq!((&result.id, result.completions.len()), (&request.id, 1));
        assert_eq!(result.completions[0].text, json!(ids).to_string(), "the answer of another request");
    }
    elapsed_s
}

/// The first is busy now and then, by 429 and 503; the second breaks off for a second and comes back; the third falls silent for
/// good; the fourth answers half or a page now and then. The first and the fourth take their time until the second was asked
/// again, so that on a fast machine too there are requests left for it.
#[test]
fn ten_thousand_requests_over_four_servers_with_faults_each_have_one_answer() {
    let ms = Duration::from_millis;
    let silent_from = Arc::new(Mutex::new(None::<Duration>));
    let since = Arc::clone(&silent_from);
    let broken = Mutex::new(None::<(Duration, usize)>);
    let is_back = Arc::new(AtomicBool::new(false));
    let wait = move |at: usize, is_back: &AtomicBool| {
        if at > 2000 && !is_back.load(Ordering::Relaxed) {
            std::thread::sleep(ms(100));
        }
    };
    let (back_1, back_2, back_4) = (Arc::clone(&is_back), Arc::clone(&is_back), Arc::clone(&is_back));
    let mocks = [
        Mock::start(ms(1), move |at, _| {
            wait(at, &back_1);
            match at % 50 {
                7 => Act::Status("429 Too Many Requests", "retry-after: 0"),
                31 => Act::Status("503 Service Unavailable", ""),
                _ => Act::Answer,
            }
        }),
        Mock::start(ms(1), move |at, elapsed| {
            if at <= 200 {
                return Act::Answer;
            }
            let mut broken = broken.lock().unwrap();
            let (from, n_asked) = broken.get_or_insert((elapsed, at));
            if elapsed < *from + ms(1000) {
                *n_asked = at;
                return Act::Reset;
            }
            // Not by listing its models alone.
            back_2.fetch_or(at > *n_asked + 1, Ordering::Relaxed);
            Act::Answer
        }),
        Mock::start(ms(1), move |at, elapsed| {
            if at < 300 {
                return Act::Answer;
            }
            since.lock().unwrap().get_or_insert(elapsed);
            Act::Hang
        }),
        Mock::start(ms(1), move |at, _| {
            wait(at, &back_4);
            match at % 60 {
                11 => Act::Half,
                41 => Act::Page,
                _ => Act::Answer,
            }
        }),
    ];
    let Some(engine) = open(&mocks, Duration::from_secs(600)) else { return };
    let elapsed_s = check(&engine.unwrap(), 10_000);
    assert!(elapsed_s < 120.0, "{elapsed_s} s");
    let silent_from = silent_from.lock().unwrap().expect("the third server was asked more than 300 times");
    let last = *mocks[2].asked.lock().unwrap().last().unwrap();
    assert!(last < silent_from + Duration::from_secs(5), "asked {:?} after it fell silent", last - silent_from);
    assert!(is_back.load(Ordering::Relaxed), "the second server is asked when it is back");
}

/// 16 requests at once of 50 ms each are 320 a second; three healthy servers make 960. The fourth falls silent at once.
#[test]
fn a_dead_server_costs_the_healthy_ones_less_than_a_tenth_of_their_speed() {
    if std::env::var("ALOE_SLOW").is_err() {
        eprintln!("not run: ALOE_SLOW is not set");
        return;
    }
    let healthy = || Mock::start(Duration::from_millis(50), |_, _| Act::Answer);
    let Some(alone) = open(&[healthy()], Duration::from_secs(600)) else { return };
    let one_per_s = 2000.0 / check(&alone.unwrap(), 2000);
    let silent = Mock::start(Duration::from_millis(50), |at, _| if at < 50 { Act::Answer } else { Act::Hang });
    let mocks = [healthy(), healthy(), healthy(), silent];
    let engine = open(&mocks, Duration::from_secs(600)).unwrap().unwrap();
    let all_per_s = 10_000.0 / check(&engine, 10_000);
    eprintln!("one server {one_per_s:.0} requests a second, three healthy of four {all_per_s:.0}");
    assert!(all_per_s >= 0.9 * 3.0 * one_per_s, "{all_per_s} of {}", 3.0 * one_per_s);
}

/// The first server answers five requests at once, its list of models among them, and each after 3.2 s: as llama-server, whose
/// connections are a few more than its slots. Sixteen at once keep it from listing its models in time.
#[test]
fn a_living_server_whose_connections_are_all_taken_is_not_taken_for_dead() {
    if std::env::var("ALOE_SLOW").is_err() {
        eprintln!("not run: ALOE_SLOW is not set");
        return;
    }
    let n_busy = Arc::new(Mutex::new(0));
    let small = Mock::start(Duration::ZERO, move |at, _| {
        if at == 0 {
            return Act::Answer;
        }
        loop {
            let mut n = n_busy.lock().unwrap();
            if *n < 5 {
                *n += 1;
                break;
            }
            drop(n);
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(3200));
        *n_busy.lock().unwrap() -= 1;
        Act::Answer
    });
    let mocks = [small, Mock::start(Duration::from_millis(200), |_, _| Act::Answer)];
    let Some(engine) = open(&mocks, Duration::from_secs(600)) else { return };
    check(&engine.unwrap(), 400);
    assert_eq!(mocks[0].n_asked() + mocks[1].n_asked(), 400, "no request was taken away from a living server");
}

/// The second falls silent with its 257th request, when it is due for the canary: that is given up with the server, after 4.5 s.
#[test]
fn a_server_that_falls_silent_at_the_canary_does_not_hold_up_the_others() {
    let ms = Duration::from_millis(1);
    let silent = Mock::start(ms, |at, _| if at < 256 { Act::Answer } else { Act::Hang });
    let mocks = [Mock::start(ms, |_, _| Act::Answer), silent];
    let Some(engine) = open(&mocks, Duration::from_secs(600)) else { return };
    let elapsed_s = check(&engine.unwrap(), 2000);
    assert!(elapsed_s < 12.0, "{elapsed_s} s");
}

/// One request hangs at a server that otherwise lives: only its own time-out tells.
#[test]
fn a_request_that_hangs_at_a_living_server_is_moved_after_its_time_out() {
    let mocks = [
        Mock::start(Duration::ZERO, |at, _| if at == 3 { Act::Hang } else { Act::Answer }),
        Mock::start(Duration::ZERO, |_, _| Act::Answer),
    ];
    let Some(engine) = open(&mocks, Duration::from_secs(1)) else { return };
    assert!(check(&engine.unwrap(), 200) < 20.0);
    assert!(mocks[0].n_asked() + mocks[1].n_asked() > 200, "the request that hung is asked once more");
}

/// Five refusals in a row, with pauses of 0.25, 0.5, 1, 2 and 4 s: more refusals than a server that breaks off is tried, and no
/// `Retry-After` shortens the pauses.
#[test]
fn a_busy_server_is_asked_again_for_as_long_as_it_lives() {
    let n_refused = Arc::new(Mutex::new(0));
    let busy = Mock::start(Duration::ZERO, move |at, _| {
        let mut n_refused = n_refused.lock().unwrap();
        if at < 3 || *n_refused == 5 {
            return Act::Answer;
        }
        *n_refused += 1;
        Act::Status("429 Too Many Requests", "retry-after: 0")
    });
    let Some(engine) = open(&[busy], Duration::from_secs(600)) else { return };
    let engine = engine.unwrap();
    // The canary after the first call may be what is refused.
    let waited_s = check(&engine, 3) + check(&engine, 1);
    assert!((7.5..40.0).contains(&waited_s), "{waited_s} s");
}

#[test]
fn servers_of_different_models_are_refused_and_one_that_is_down_at_the_start_is_left_out() {
    let good = || Mock::start(Duration::ZERO, |_, _| Act::Answer);
    let other = Mock::listing("other weights", Duration::ZERO, |_, _| Act::Answer);
    let Some(opened) = open(&[good(), other], Duration::from_secs(5)) else { return };
    let error = opened.err().unwrap().to_string();
    assert!(error.contains("do not serve the same model") && error.contains("other weights"), "{error}");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let down = Mock { base: format!("http://{closed}/v1"), asked: Arc::default() };
    check(&open(&[down, good()], Duration::from_secs(5)).unwrap().unwrap(), 100);
}

/// The first server goes down under the requests and comes back with other weights under the old name.
#[test]
fn a_server_that_comes_back_with_another_model_stops_the_run() {
    let steady = Mock::start(Duration::from_millis(1), |_, _| Act::Answer);
    let is_new = Arc::new(Mutex::new(false));
    let new = Arc::clone(&is_new);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let new = Arc::clone(&new);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                while let Some((path, _)) = read_request(&mut reader) {
                    if !path.ends_with("/models") {
                        *new.lock().unwrap() = true;
                        let _ = stream.shutdown(std::net::Shutdown::Both);
                        return;
                    }
                    let root = if *new.lock().unwrap() { "other" } else { "weights" };
                    let list = json!({"data": [{"id": "m", "root": root}]}).to_string();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", list.len());
                    let _ = (&stream).write_all(format!("{head}{list}").as_bytes());
                }
            });
        }
    });
    let mocks = [Mock { base, asked: Arc::default() }, steady];
    let Some(engine) = open(&mocks, Duration::from_secs(5)) else { return };
    let error = engine.unwrap().generate(&requests(5000), &Progress::silent(), &Cancel::default()).unwrap_err();
    assert!(error.to_string().contains("it now serves"), "{error}");
}
