//! Country codes as an operator may write them. The directory accepts any two letters, since it is
//! not ours to mend; a code in the configuration that no account can have is a slip of the pen.

use crate::detector::directory::Country;

/// ISO 3166-1 alpha-2, officially assigned; then withdrawn codes that old records still carry.
const ASSIGNED: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ \
    BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ \
    DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP \
    GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI \
    KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP \
    MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM \
    PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX \
    SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU \
    WF WS YE YT ZA ZM ZW \
    AN BU CS DD FX NT SU TP YD YU ZR";

/// What people write for what they mean.
const SLIPS: [(&str, &str); 8] = [
    ("UK", "GB"),
    ("USA", "US"),
    ("EL", "GR"),
    ("CHN", "CN"),
    ("RUS", "RU"),
    ("GBR", "GB"),
    ("PRK", "KP"),
    ("IRN", "IR"),
];

/// Parses a code; the error says what would be right.
pub(super) fn parse(text: &str) -> Result<Country, String> {
    let upper = text.trim().to_ascii_uppercase();
    if let Some((_, meant)) = SLIPS.iter().find(|(slip, _)| *slip == upper) {
        return Err(format!("did you mean {meant:?}?"));
    }
    match Country::parse(text) {
        Some(country) if is_assigned(&upper) || is_for_users(&upper) => Ok(country),
        Some(_) | None => {
            Err("right would be an ISO 3166-1 alpha-2 country code such as \"US\"".to_owned())
        }
    }
}

fn is_assigned(code: &str) -> bool {
    ASSIGNED.split(' ').any(|assigned| assigned == code)
}

/// AA, QM to QZ, XA to XZ are free for users: XK is Kosovo. (ZZ is "unknown".)
fn is_for_users(code: &str) -> bool {
    code == "AA" || ("QM"..="QZ").contains(&code) || ("XA"..="XZ").contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_assigned_code() {
        let codes: Vec<&str> = ASSIGNED.split(' ').collect();
        assert_eq!(codes.len(), 249 + 11);
        assert!(codes.iter().all(|code| Country::parse(code).is_some()));
    }

    #[test]
    fn codes_that_no_account_can_have_are_refused() {
        for (text, right) in
            [("UK", "\"GB\""), ("USA", "\"US\""), ("ZZ", "ISO 3166"), ("UX", "ISO"), ("", "ISO")]
        {
            let error = parse(text).expect_err(text);
            assert!(error.contains(right), "{text}: {error}");
        }
        assert!(parse("us").is_ok());
        assert!(parse("XK").is_ok());
    }
}
