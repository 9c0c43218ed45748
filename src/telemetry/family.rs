//! A metric as a constant: name, kind, labels, help; and the samples it takes at a scrape.
//!
//! Metrics that mirror a fact (a state, a position, a table's counters) are made from
//! that fact when somebody scrapes. So a one-hot is never seen half switched, a value
//! never measured is absent rather than 0, and `/metrics` and the status cannot disagree.

use prometheus::core::Desc;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use std::collections::HashMap;

/// One metric's name and meaning.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) labels: &'static [&'static str],
    counter: bool,
}

/// Values of a sample's labels, in the order of [`Family::labels`], and its value.
pub(super) type Sample<'a> = (Vec<&'a str>, f64);

impl Family {
    pub(super) const fn gauge(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            name,
            help,
            labels,
            counter: false,
        }
    }

    pub(super) const fn counter(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            name,
            help,
            labels,
            counter: true,
        }
    }

    /// What the registry keeps names apart by.
    pub(super) fn desc(&self) -> prometheus::Result<Desc> {
        let labels = self
            .labels
            .iter()
            .map(|label| (*label).to_owned())
            .collect();
        Desc::new(
            self.name.to_owned(),
            self.help.to_owned(),
            labels,
            HashMap::new(),
        )
    }

    /// One sample without labels; none when there is nothing to tell.
    pub(super) fn single(&self, value: Option<f64>) -> MetricFamily {
        self.samples(value.map(|value| (Vec::new(), value)))
    }

    /// A sample of 1 for `current` and of 0 for each other value of the last label.
    pub(super) fn one_hot<'a>(
        leading: &[&'a str],
        all: impl IntoIterator<Item = &'static str>,
        current: &str,
    ) -> Vec<Sample<'a>> {
        let sample = |value: &'static str| {
            let labels = leading.iter().copied().chain([value]).collect();
            (labels, if value == current { 1.0 } else { 0.0 })
        };
        all.into_iter().map(sample).collect()
    }

    /// The family with these samples.
    pub(super) fn samples<'a>(
        &self,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(if self.counter {
            MetricType::COUNTER
        } else {
            MetricType::GAUGE
        });
        family.set_metric(
            samples
                .into_iter()
                .map(|sample| self.metric(sample))
                .collect(),
        );
        family
    }

    fn metric(&self, (values, value): Sample<'_>) -> Metric {
        let pair = |(name, value): (&&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_owned());
            pair
        };
        let mut metric = Metric::from_label(self.labels.iter().zip(values).map(pair).collect());
        if self.counter {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    }
}
