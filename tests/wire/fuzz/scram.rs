//! The server's half of SCRAM-SHA-256 (RFC 5802, 7677), by the book, and by one's own rules.

use sha2::{Digest, Sha256};

/// What the client knows, and so does the server.
pub const PASSWORD: &str = "s3cret";

fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text);
    let outer = Sha256::new().chain_update(pad(0x5c));
    outer.chain_update(inner.finalize()).finalize().into()
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut bits = 0_u32;
        for place in 0..3 {
            bits = bits << 8 | u32::from(group.get(place).copied().unwrap_or(0));
        }
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > group.len() {
                '='
            } else {
                letter.into()
            });
        }
    }
    text
}

/// How a server goes about it.
#[derive(Clone, Debug)]
pub struct Rules {
    /// As the message has it.
    pub iterations: &'static str,
    pub salt: &'static [u8],
    /// Put behind the client's nonce; or in its place.
    pub nonce: &'static str,
    pub forgets_nonce: bool,
    /// What it believes the password to be.
    pub password: &'static str,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            iterations: "1",
            salt: b"0123456789abcdef",
            nonce: "server",
            forgets_nonce: false,
            password: PASSWORD,
        }
    }
}

/// What has been said so far.
#[derive(Debug, Default)]
pub struct Exchange {
    client_first: String,
    server_first: String,
    client_final: String,
}

impl Exchange {
    /// Notes what the client says; a password message of whatever kind.
    pub fn hear(&mut self, body: &[u8]) {
        let text = String::from_utf8_lossy(body);
        if let Some(at) = text.find("n=,r=") {
            self.client_first = text[at..].to_owned();
        } else if let Some((before, _)) = text.split_once(",p=") {
            self.client_final = before.to_owned();
        }
    }

    pub fn server_first(&mut self, rules: &Rules) -> Vec<u8> {
        let theirs = self.client_first.strip_prefix("n=,r=").unwrap_or_default();
        let theirs = if rules.forgets_nonce { "" } else { theirs };
        let (nonce, salt) = (rules.nonce, base64(rules.salt));
        self.server_first = format!("r={theirs}{nonce},s={salt},i={}", rules.iterations);
        self.server_first.clone().into_bytes()
    }

    /// Of one iteration, however many were said.
    pub fn server_final(&self, rules: &Rules) -> Vec<u8> {
        let salted = hmac(
            rules.password.as_bytes(),
            &[rules.salt, &[0, 0, 0, 1]].concat(),
        );
        let spoken = [
            &*self.client_first,
            &*self.server_first,
            &*self.client_final,
        ]
        .join(",");
        let signature = hmac(&hmac(&salted, b"Server Key"), spoken.as_bytes());
        format!("v={}", base64(&signature)).into_bytes()
    }
}
