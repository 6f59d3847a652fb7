//! A headless Chromium, spoken to in its DevTools protocol over a pipe (file descriptors 3 and 4, messages ended by a zero byte): the
//! page runs in real time, keys are real keys, and every request is told.

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long an answer is waited for: a machine under load, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// An open page.
pub(crate) struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    n_sent: u64,
    session: Option<String>,
    events: VecDeque<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts it with an empty page; `None`, said aloud, where there is no Chromium.
    pub(crate) fn start() -> Option<Self> {
        let is_there = Command::new("chromium").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !is_there.is_ok_and(|status| status.success()) {
            assert!(std::env::var("ALOE_REQUIRE").is_err(), "chromium is not installed");
            eprintln!("not run: chromium is not installed");
            return None;
        }
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "chromium"])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--remote-debugging-pipe", "--window-size=1280,1600"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, messages) = channel();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            while stdout.read_until(0, &mut bytes).is_ok_and(|n| n > 0) {
                bytes.pop();
                if told.send(serde_json::from_slice(&bytes).unwrap()).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
        let commands = child.stdin.take().unwrap();
        let events = VecDeque::new();
        let mut browser = Self { child, commands, messages, n_sent: 0, session: None, events, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for enable in ["Page.enable", "Runtime.enable", "Network.enable"] {
            browser.call(enable, json!({}));
        }
        Some(browser)
    }

    /// One command of the protocol and its result.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let message = self.told(method, params);
        assert!(message.get("error").is_none(), "{method}: {message}");
        message["result"].clone()
    }

    /// One command of the protocol and what it is answered.
    fn told(&mut self, method: &str, params: Value) -> Value {
        self.n_sent += 1;
        let mut command = json!({ "id": self.n_sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).unwrap();
        loop {
            let message = self.messages.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no answer to {method}"));
            if message["id"] == self.n_sent {
                return message;
            }
            self.events.push_back(message);
        }
    }

    /// What an expression, or the promise it gives, comes to.
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let found = self.call("Runtime.evaluate", params);
        assert!(found.get("exceptionDetails").is_none(), "{expression}: {found}");
        found["result"]["value"].clone()
    }

    /// Waits until an expression is true. A page that is just being left or built is no error.
    pub(crate) fn until(&mut self, condition: &str) {
        let soon =
            format!("(async () => {{ await new Promise((go) => setTimeout(go, 5)); return Boolean({condition}); }})()");
        let params = json!({ "expression": soon, "awaitPromise": true, "returnByValue": true });
        let deadline = Instant::now() + PATIENCE;
        while self.told("Runtime.evaluate", params.clone())["result"]["result"]["value"] != true {
            assert!(Instant::now() < deadline, "it never came to {condition}");
        }
    }

    /// Opens a file with a fragment and waits for its list.
    pub(crate) fn open(&mut self, page: &Path, fragment: &str) {
        self.go(&format!("file://{}{fragment}", page.display()));
        self.until("document.documentElement.dataset.listMs");
    }

    /// Goes to an address, from an empty page: another fragment alone would load nothing.
    pub(crate) fn go(&mut self, address: &str) {
        self.call("Page.navigate", json!({ "url": "about:blank" }));
        self.until("location.href === 'about:blank'");
        self.call("Page.navigate", json!({ "url": address }));
    }

    /// Presses a key.
    pub(crate) fn key(&mut self, key: &str) {
        let text = if key.len() == 1 { json!(key) } else { Value::Null };
        let mut down = json!({ "type": "keyDown", "key": key });
        if !text.is_null() {
            down["text"] = text;
        }
        self.call("Input.dispatchKeyEvent", down);
        self.call("Input.dispatchKeyEvent", json!({ "type": "keyUp", "key": key }));
    }

    /// The addresses asked for since the last call, and what was said in the console as an error.
    pub(crate) fn requests(&mut self) -> Vec<String> {
        self.call("Runtime.evaluate", json!({ "expression": "1" }));
        let asked = self.events.drain(..).filter(|event| event["method"] == "Network.requestWillBeSent");
        asked.map(|event| event["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.commands.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
