//! What is to be measured: the words behind `make bench ARGS="…"`.

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};

use crate::contender::Contender;

/// Measures pglockstep beside PostgreSQL's own subscription.
#[derive(Clone, Debug, Parser)]
#[command(name = "make bench", no_binary_name = false)]
pub struct Arguments {
    /// Only these, by name and separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub only: Vec<String>,
    /// How often each contender does each work; the order turns round from one pair to the next.
    #[arg(long, default_value_t = 3)]
    pub pairs: usize,
    /// PostgreSQL's major version, on both sides.
    #[arg(long, default_value_t = 15)]
    pub major: u32,
    /// All sizes times this.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Leave the other one out.
    #[arg(long)]
    pub consumer: Option<Consumer>,
    /// The subscription's `streaming`: off, on, or parallel; by default the best that the version has.
    #[arg(long)]
    pub native_streaming: Option<String>,
    /// Keep what `target/bench/bench.json` has of works that are not measured now.
    #[arg(long)]
    pub add: bool,
    /// Tiny sizes, one pair, everything once: to see that it works.
    #[arg(long)]
    pub smoke: bool,
    /// Print the names and end.
    #[arg(long)]
    pub list: bool,
    /// Said by `cargo bench`.
    #[arg(long, hide = true)]
    pub bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Consumer {
    Native,
    Ours,
}

/// How much smaller than in full: a function's test wants rows of each kind, not many.
const SMOKE_SCALE: f64 = 0.004;

impl Arguments {
    /// As given, and as `--smoke` has it.
    pub fn read() -> Result<Self> {
        let mut arguments = Self::parse();
        if arguments.smoke {
            arguments.scale = SMOKE_SCALE;
            arguments.pairs = 1;
        }
        if arguments.pairs == 0 || !arguments.scale.is_finite() || arguments.scale <= 0.0 {
            bail!("--pairs and --scale must be more than nothing");
        }
        Ok(arguments)
    }

    pub fn size(&self) -> Size {
        Size(self.scale)
    }

    pub fn wants(&self, contender: Contender) -> bool {
        match self.consumer {
            None => true,
            Some(Consumer::Native) => contender == Contender::Native,
            Some(Consumer::Ours) => contender != Contender::Native,
        }
    }

    /// What a subscription is told of transactions in progress.
    pub fn native_streaming(&self) -> &str {
        match &self.native_streaming {
            Some(given) => given,
            None if self.major >= 16 => "parallel",
            None => "on",
        }
    }
}

/// A factor on all sizes.
#[derive(Clone, Copy, Debug)]
pub struct Size(f64);

impl Size {
    pub fn of(self, full: u32) -> u32 {
        self.at_least(full, 1)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn at_least(self, full: u32, least: u32) -> u32 {
        // A float beyond u32 becomes u32::MAX.
        ((f64::from(full) * self.0).round() as u32).max(least)
    }
}
