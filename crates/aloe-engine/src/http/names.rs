//! A server's addresses, remembered for half a second. ureq asks for them before each request, also where a connection is open, and by a
//! thread of its own each time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// A run of requests asks once; the later tries of a request, seconds apart, ask anew, so that a name that moved is found.
const REMEMBERED: Duration = Duration::from_millis(500);

/// [`DefaultResolver`] with a memory.
#[derive(Debug, Default)]
pub(super) struct Names {
    system: DefaultResolver,
    found: Mutex<HashMap<String, (Instant, ResolvedSocketAddrs)>>,
}

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let name = format!("{:?}://{:?}", uri.scheme(), uri.authority());
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, addresses)) = found.get(&name)
            && at.elapsed() < REMEMBERED
        {
            return Ok(copy(self, addresses));
        }
        drop(found);
        let addresses = self.system.resolve(uri, config, timeout)?;
        found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(name, (Instant::now(), copy(self, &addresses)));
        Ok(addresses)
    }
}

fn copy(names: &Names, addresses: &ResolvedSocketAddrs) -> ResolvedSocketAddrs {
    let mut copied = names.empty();
    addresses.iter().for_each(|address| copied.push(*address));
    copied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_and_port_has_its_own_address_asked_or_remembered() {
        let names = Names::default();
        let asked = |uri: &'static str| {
            let config = ureq::Agent::config_builder().build();
            let timeout = NextTimeout {
                after: Duration::from_secs(5).into(),
                reason: ureq::Timeout::Resolve,
                ..NextTimeout::default()
            };
            names.resolve(&Uri::from_static(uri), &config, timeout).unwrap()[0].to_string()
        };
        for _ in 0..2 {
            assert_eq!(asked("http://127.0.0.1:81/v1"), "127.0.0.1:81");
            assert_eq!(asked("http://127.0.0.1:82/v1"), "127.0.0.1:82");
            assert_eq!(asked("https://127.0.0.2/v1"), "127.0.0.2:443");
        }
        assert_eq!(names.found.lock().unwrap().len(), 3);
    }
}
