//! Who is in the cloud: each scenario's accounts and what they rent, and the accounts of all sizes
//! around them.

use super::dice::Dice;
use super::hardware::{self, Hardware};
use super::scenario::{Allocation, Calendar, Rhythm, Scenario, Site, Tenant};
use super::telemetry::{Behaviour, Probe};
use crate::proto::Account;

/// Everything that the scenarios put into the cloud.
#[derive(Debug, Default)]
pub(super) struct Population {
    pub tenants: Vec<Tenant>,
    pub sites: Vec<Site>,
    pub allocations: Vec<Allocation>,
}

/// Builds one scenario after the other, each from its own stream of chance.
pub(super) struct Builder {
    pub population: Population,
    pub calendar: Calendar,
    seed: u64,
    dice: Dice,
}

/// What one allocation asks for; the rest is the scenario's.
struct Ask {
    hardware: &'static Hardware,
    quantity: f64,
    nodes: u32,
    behaviour: Behaviour,
}

impl Builder {
    pub(super) fn new(seed: u64, calendar: Calendar) -> Self {
        let dice = Dice::new(seed, 0);
        Self { population: Population::default(), calendar, seed, dice }
    }

    pub(super) fn add(&mut self, scenario: Scenario) {
        // a scenario is the same whichever others are asked for
        self.dice = Dice::new(self.seed, 1 + scenario as u64);
        match scenario {
            Scenario::Background => {}
            Scenario::SteadyTraining => self.steady_training(),
            Scenario::FineTuning => self.fine_tuning(),
            Scenario::Inference => self.inference(),
            Scenario::Batch => self.batch(),
            Scenario::Rendering => self.rendering(),
            Scenario::SplitAccounts => self.split_accounts(),
            Scenario::SplitRegions => self.split_regions(),
            Scenario::Subsidiary => self.subsidiary(),
            Scenario::Reseller => self.reseller(),
            Scenario::BelowThreshold => self.below_threshold(),
            Scenario::Corrections => self.corrections(),
        }
    }

    fn steady_training(&mut self) {
        let account = self.tenant(Scenario::SteadyTraining, "Falcon Ridge Models FZ", "AE", "AE");
        let site = self.site("us-east-1", "us-east-1/rail-a");
        let up = self.run();
        self.rent(account, site, training(hardware::H100, 128), Rhythm::Gang(up));
    }

    fn fine_tuning(&mut self) {
        let account = self.tenant(Scenario::FineTuning, "Rheinwerk Sprachtechnik GmbH", "DE", "DE");
        let site = self.site("eu-central-1", "eu-central-1/pod-3");
        for nodes in [1, 2, 4, 8] {
            let up = self.jobs((120, 600), (60, 720));
            let ask = Ask {
                hardware: hardware::A100,
                quantity: 8.0,
                nodes,
                behaviour: Behaviour::FineTuning,
            };
            self.rent(account, site, ask, Rhythm::Gang(up));
        }
    }

    fn inference(&mut self) {
        let account = self.tenant(Scenario::Inference, "Larkspur Chat Inc.", "US", "US");
        for (region, peak_hour) in [("us-west-2", 21), ("eu-west-1", 14)] {
            let site = self.site(region, "");
            let ask = Ask {
                hardware: hardware::H100,
                quantity: 4.0,
                nodes: 32,
                behaviour: Behaviour::Inference,
            };
            self.rent(account, site, ask, Rhythm::Daily { peak_hour, floor: 250 });
        }
    }

    fn batch(&mut self) {
        let account = self.tenant(Scenario::Batch, "Cobalt Claims Analytics LLC", "US", "US");
        let site = self.site("us-east-2", "us-east-2/pod-1");
        let up = self.nights();
        let ask =
            Ask { hardware: hardware::A100, quantity: 8.0, nodes: 24, behaviour: Behaviour::Batch };
        self.rent(account, site, ask, Rhythm::Gang(up));
    }

    fn rendering(&mut self) {
        let account = self.tenant(Scenario::Rendering, "Atelier Lumière SAS", "FR", "FR");
        let site = self.site("eu-west-3", "");
        for _ in 0..3 {
            let up = self.jobs((90, 480), (120, 900));
            let ask = Ask {
                hardware: hardware::L40S,
                quantity: 4.0,
                nodes: 16,
                behaviour: Behaviour::Rendering,
            };
            self.rent(account, site, ask, Rhythm::Gang(up));
        }
    }

    fn split_accounts(&mut self) {
        // one schedule: the parts start, pause and stop together
        let up = self.run();
        let countries = ["HK", "SG", "MY", "AE", "US", "IE", "HK", "SG"];
        for (index, country) in countries.into_iter().enumerate() {
            let name = format!("Jade Harbour Cloud {}", index + 1);
            let account = self.tenant(Scenario::SplitAccounts, &name, country, "CN");
            let entry = &mut self.population.tenants[account as usize].entry;
            entry.owner_id = "owner-jade-harbour".to_owned();
            entry.payment_reference = "card-jade-1".to_owned();
            let site = self.site("ap-southeast-1", &format!("ap-southeast-1/rail-{index}"));
            self.rent(account, site, training(hardware::H100, 16), Rhythm::Gang(up.clone()));
        }
    }

    fn split_regions(&mut self) {
        let account = self.tenant(Scenario::SplitRegions, "Merlion Research Pte", "SG", "SG");
        let up = self.run();
        for region in ["us-east-1", "us-west-2", "eu-north-1", "ap-northeast-1"] {
            let site = self.site(region, &format!("{region}/rail-m"));
            self.rent(account, site, training(hardware::H200, 32), Rhythm::Gang(up.clone()));
        }
    }

    fn subsidiary(&mut self) {
        let account = self.tenant(Scenario::Subsidiary, "Silverpine AI Delaware Inc.", "US", "CN");
        let entry = &mut self.population.tenants[account as usize].entry;
        entry.incorporation_country = "US".to_owned();
        entry.payment_country = "US".to_owned();
        let site = self.site("us-west-2", "us-west-2/rail-c");
        let up = self.run();
        // metered by instance type: one node is eight accelerators
        let ask = Ask { quantity: 1.0, ..training(hardware::P5, 80) };
        self.rent(account, site, ask, Rhythm::Gang(up));
    }

    fn reseller(&mut self) {
        let reseller = self.tenant(Scenario::Reseller, "Cumulus Wholesale Corp.", "US", "US");
        let reseller_id = self.population.tenants[reseller as usize].entry.account_id.clone();
        let pool = self.site("us-east-1", "us-east-1/pod-9");
        self.rent(reseller, pool, training(hardware::H100, 16), Rhythm::Always);
        for index in 0..10_u64 {
            let country = *self.dice.pick(&["", "", "VN", "TR", "BR", "IN", "US"]);
            let name = format!("Cumulus customer {}", index + 1);
            let account = self.tenant(Scenario::Reseller, &name, country, country);
            let tenant = &mut self.population.tenants[account as usize];
            tenant.entry.reseller_id.clone_from(&reseller_id);
            // one whose papers never came
            tenant.unlisted = index == 0;
            let site = self.site("us-east-1", "us-east-1/pod-9");
            let nodes = u32::try_from(self.dice.between(2, 12)).expect("a dozen");
            let (ask, rhythm) = if index == 0 {
                (training(hardware::H100, 10), Rhythm::Always)
            } else if index % 2 == 0 {
                let up = self.jobs((180, 900), (60, 600));
                (
                    Ask { behaviour: Behaviour::FineTuning, ..training(hardware::A100, nodes) },
                    Rhythm::Gang(up),
                )
            } else {
                let ask =
                    Ask { behaviour: Behaviour::Inference, ..training(hardware::A100, nodes) };
                (ask, Rhythm::Daily { peak_hour: 15, floor: 300 })
            };
            self.rent(account, site, ask, rhythm);
        }
    }

    fn below_threshold(&mut self) {
        let account = self.tenant(Scenario::BelowThreshold, "Hangang Systems Co.", "KR", "KR");
        let site = self.site("us-east-2", "us-east-2/rail-k");
        self.rent(account, site, training(hardware::H100, 63), Rhythm::Always);
    }

    fn corrections(&mut self) {
        let account = self.tenant(Scenario::Corrections, "Sakura Weather KK", "JP", "JP");
        let site = self.site("ap-northeast-1", "ap-northeast-1/pod-2");
        self.rent(account, site, training(hardware::H100, 16), Rhythm::Always);
    }

    /// `resources` nodes over `accounts` accounts in proportion to 1, 1/2, 1/3, ...
    pub(super) fn background(&mut self, accounts: u32, resources: u32, constant: bool) {
        self.dice = Dice::new(self.seed, 1 + Scenario::Background as u64);
        let first = u32::try_from(self.population.tenants.len()).expect("accounts fit 32 bits");
        for index in 0..accounts {
            self.background_tenant(index);
        }
        let nodes = self.zipf(accounts, resources);
        for (account, nodes) in (first..).zip(nodes) {
            if nodes > 0 {
                self.background_allocation(account, nodes, constant);
            }
        }
    }

    fn background_tenant(&mut self, index: u32) {
        const COUNTRIES: [&str; 20] = [
            "US", "US", "US", "US", "US", "US", "US", "US", "US", "US", "US", "US", "DE", "GB",
            "IN", "JP", "CA", "FR", "BR", "AU",
        ];
        let country = *self.dice.pick(&COUNTRIES);
        let name = format!("Customer {}", index + 1);
        let account = self.tenant(Scenario::Background, &name, country, country);
        let chance = self.dice.below(1000);
        let earlier = self.dice.below(u64::from(index) + 1);
        let tenant = &mut self.population.tenants[account as usize];
        tenant.unlisted = chance < 5;
        if chance >= 900 {
            // a few groups of accounts
            tenant.entry.owner_id = format!("owner-{:06}", earlier / 2 + 1);
        }
    }

    /// Draws an account for each resource, so that the sizes are the same law at any number.
    fn zipf(&mut self, accounts: u32, resources: u32) -> Vec<u32> {
        // weights in integers: exact on every machine
        const SCALE: u64 = 1 << 40;
        let mut until = Vec::with_capacity(accounts as usize);
        let mut sum = 0_u64;
        for rank in 1..=u64::from(accounts) {
            sum += SCALE / rank;
            until.push(sum);
        }
        let mut nodes = vec![0_u32; accounts as usize];
        if sum > 0 {
            for _ in 0..resources {
                let drawn = self.dice.below(sum);
                nodes[until.partition_point(|&until| until <= drawn)] += 1;
            }
        }
        nodes
    }

    fn background_allocation(&mut self, account: u32, nodes: u32, constant: bool) {
        const REGIONS: [&str; 6] =
            ["us-east-1", "us-east-2", "us-west-2", "eu-west-1", "eu-central-1", "ap-northeast-1"];
        let region = *self.dice.pick(&REGIONS);
        let pod = self.dice.below(16);
        let site = self.site(region, &format!("{region}/pod-{pod}"));
        let hardware = *self.dice.pick(&[
            hardware::L4,
            hardware::L4,
            hardware::L40S,
            hardware::A100,
            hardware::A100,
            hardware::H100,
            hardware::TPU_V5P,
            hardware::VCPU,
        ]);
        let quantity = *self.dice.pick(&[1.0, 1.0, 1.0, 2.0, 4.0, 0.5]);
        let behaviour = *self.dice.pick(&[
            Behaviour::Research,
            Behaviour::Research,
            Behaviour::Inference,
            Behaviour::FineTuning,
            Behaviour::Batch,
            Behaviour::Rendering,
        ]);
        let rhythm = match (constant, behaviour) {
            (true, _) => Rhythm::Always,
            (false, Behaviour::Inference | Behaviour::Research) => {
                let peak_hour = u32::try_from(self.dice.between(8, 22)).expect("an hour");
                Rhythm::Daily { peak_hour, floor: 400 }
            }
            (
                false,
                Behaviour::Training
                | Behaviour::FineTuning
                | Behaviour::Batch
                | Behaviour::Rendering,
            ) => Rhythm::Gang(self.jobs((60, 1440), (60, 1440))),
        };
        self.rent(account, site, Ask { hardware, quantity, nodes, behaviour }, rhythm);
    }

    fn tenant(&mut self, scenario: Scenario, name: &str, country: &str, parent: &str) -> u32 {
        let index = u32::try_from(self.population.tenants.len()).expect("accounts fit 32 bits");
        let mut entry = Account {
            account_id: format!("acct-{:06}", index + 1),
            legal_name: name.to_owned(),
            country: country.to_owned(),
            incorporation_country: country.to_owned(),
            ultimate_parent_country: parent.to_owned(),
            payment_country: country.to_owned(),
            identity_verified: !country.is_empty(),
            ..Account::default()
        };
        if scenario != Scenario::Background {
            entry.contact_email = format!("billing@acct-{:06}.example", index + 1);
        }
        self.population.tenants.push(Tenant { scenario, entry, unlisted: false });
        index
    }

    fn site(&mut self, region: &str, fabric: &str) -> u32 {
        let sites = &mut self.population.sites;
        let found = sites.iter().position(|site| site.region == region && site.fabric == fabric);
        let index = found.unwrap_or_else(|| {
            sites.push(Site { region: region.to_owned(), fabric: fabric.to_owned() });
            sites.len() - 1
        });
        u32::try_from(index).expect("a few hundred sites")
    }

    fn rent(&mut self, account: u32, site: u32, ask: Ask, rhythm: Rhythm) {
        let probe = match ask.behaviour {
            Behaviour::Training => Probe::Full,
            Behaviour::FineTuning
            | Behaviour::Inference
            | Behaviour::Batch
            | Behaviour::Rendering
            | Behaviour::Research => {
                *self.dice.pick(&[Probe::Full, Probe::Utilization, Probe::None])
            }
        };
        self.population.allocations.push(Allocation {
            account,
            site,
            hardware: ask.hardware,
            quantity: ask.quantity,
            nodes: ask.nodes,
            behaviour: ask.behaviour,
            probe,
            rhythm,
        });
    }

    /// A long run: nearly all of the time, all nodes down together now and then for minutes.
    fn run(&mut self) -> Vec<(u32, u32)> {
        let ticks = self.calendar.ticks;
        let (mut start, stop) = (ticks / 25, ticks - ticks / 50);
        // restarts every half day to three days, more often when little time is simulated
        let longest = self.calendar.minutes(72 * 60).min(ticks / 4).max(2);
        let shortest = self.calendar.minutes(12 * 60).min(longest / 2).max(1);
        let mut up = Vec::new();
        while start < stop {
            let length = self.dice.between(u64::from(shortest), u64::from(longest));
            let end = start.saturating_add(u32::try_from(length).unwrap_or(stop)).min(stop);
            up.push((start, end));
            let (least, most) = (self.calendar.minutes(10), self.calendar.minutes(40));
            let down = self.dice.between(u64::from(least), u64::from(most));
            start = end.saturating_add(u32::try_from(down).unwrap_or(1));
        }
        up
    }

    /// Jobs and pauses, each between so many minutes.
    fn jobs(&mut self, job: (u64, u64), pause: (u64, u64)) -> Vec<(u32, u32)> {
        let mut draw = |(least, most): (u64, u64)| {
            let minutes = self.dice.between(least, most);
            self.calendar.minutes(minutes)
        };
        let mut up = Vec::new();
        let mut start = draw((1, pause.1));
        while start < self.calendar.ticks {
            let end = start.saturating_add(draw(job)).min(self.calendar.ticks);
            up.push((start, end));
            start = end.saturating_add(draw(pause));
        }
        if up.is_empty() {
            up.push((0, self.calendar.ticks.min(self.calendar.minutes(job.0))));
        }
        up
    }

    /// From 22:00 UTC for four to seven hours, weekends left out.
    fn nights(&mut self) -> Vec<(u32, u32)> {
        let mut up: Vec<(u32, u32)> = Vec::new();
        let mut tick = 0;
        while tick < self.calendar.ticks {
            let evening = self.calendar.time_of_day(tick) >= 22 * 3_600_000;
            if evening && self.calendar.day(tick) % 7 < 5 {
                let minutes = self.dice.between(240, 420);
                let end = (tick + self.calendar.minutes(minutes)).min(self.calendar.ticks);
                up.push((tick, end));
                tick = end + self.calendar.minutes(720);
            } else {
                tick += 1;
            }
        }
        if up.is_empty() {
            up.push((0, self.calendar.ticks.min(self.calendar.minutes(240))));
        }
        up
    }
}

/// Nodes of eight that train.
const fn training(hardware: &'static Hardware, nodes: u32) -> Ask {
    Ask { hardware, quantity: 8.0, nodes, behaviour: Behaviour::Training }
}
