//! The ground truth: what each account really used, summed as the events are drawn.

use super::scenario::{Scenario, Tenant};
use crate::detector::event::Telemetry;
use crate::detector::measure::{Measure, measure};
use crate::detector::time::{Span, Timestamp};

use super::hardware::Hardware;

/// The default central utilisation: what an event without telemetry is taken to have done.
pub const CENTRAL_UTILIZATION: f64 = 0.33;
/// The country that foreign is measured from, as in the default configuration.
pub const HOME: &str = "US";

/// What one account used over the whole simulated time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Used {
    /// Distinct events: exact duplicates are not in it.
    pub events: u64,
    pub measure: Measure,
    /// The first start and the last end of its usage.
    pub first: Option<Timestamp>,
    pub last: Timestamp,
    /// Most accelerators at once, in any interval; corrections aside.
    pub peak_accelerators: f64,
}

impl Used {
    pub(super) fn add(&mut self, start: Timestamp, end: Timestamp, amount: Measure) {
        self.events += 1;
        self.measure += amount;
        self.first = Some(self.first.map_or(start, |first| first.min(start)));
        self.last = self.last.max(end);
    }
}

/// The measure of `quantity` of some hardware, at the utilisation that its telemetry shows.
pub fn amount(hardware: &Hardware, quantity: f64, length: Span, telemetry: &Telemetry) -> Measure {
    let utilization = match (telemetry.tensor_active, telemetry.utilization) {
        (Some(tensor_active), _) => f64::from(tensor_active),
        (None, Some(utilization)) => CENTRAL_UTILIZATION * f64::from(utilization),
        (None, None) => CENTRAL_UTILIZATION,
    };
    measure(quantity * hardware.count, length, hardware.peaks, utilization)
}

/// Whether the default configuration calls the account foreign; one it knows nothing of is.
pub fn is_foreign(tenant: &Tenant) -> bool {
    let entry = &tenant.entry;
    let countries = [
        &entry.ultimate_parent_country,
        &entry.country,
        &entry.incorporation_country,
        &entry.payment_country,
    ];
    let known = |country: &&&String| !country.is_empty() && !tenant.unlisted;
    let mut known = countries.iter().filter(known).peekable();
    known.peek().is_none() || known.any(|country| *country != HOME)
}

/// The columns of the truth file.
pub const HEADER: [&str; 13] = [
    "account",
    "scenario",
    "owner",
    "foreign",
    "listed",
    "flop_gflop",
    "flop_allocated_gflop",
    "flop_theoretical_gflop",
    "accelerator_ms",
    "start",
    "end",
    "peak_accelerators",
    "events",
];

/// One line of the truth file.
pub fn row(tenant: &Tenant, used: &Used) -> [String; 13] {
    let entry = &tenant.entry;
    let has_owner = !entry.owner_id.is_empty() && !tenant.unlisted;
    let owner = if has_owner { &entry.owner_id } else { &entry.account_id };
    [
        entry.account_id.clone(),
        tenant.scenario.name().to_owned(),
        owner.clone(),
        is_foreign(tenant).to_string(),
        (!tenant.unlisted).to_string(),
        used.measure.flop.to_string(),
        used.measure.flop_allocated.to_string(),
        used.measure.flop_theoretical.to_string(),
        used.measure.accelerator_ms.to_string(),
        used.first.map(|first| first.to_string()).unwrap_or_default(),
        used.first.map(|_| used.last.to_string()).unwrap_or_default(),
        used.peak_accelerators.to_string(),
        used.events.to_string(),
    ]
}

/// Scenarios that occur in a list of tenants, in their order.
pub fn scenarios(tenants: &[Tenant]) -> Vec<Scenario> {
    let occurs = |scenario: &Scenario| tenants.iter().any(|tenant| tenant.scenario == *scenario);
    Scenario::ALL.into_iter().filter(occurs).collect()
}
