//! What a group may say about itself.

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::group::{
    AddPolicy, GroupProfile, HistoryForNewMembers, JoinPolicy, MAX_ANNOUNCEMENT_BYTES, MAX_AVATAR_BYTES,
    MAX_CUSTOM_ENTRIES, MAX_CUSTOM_KEY_BYTES, MAX_CUSTOM_VALUE_BYTES, MAX_DESCRIPTION_BYTES,
    MAX_GROUP_NAME_BYTES,
};

/// Checks the bounds.
///
/// # Errors
/// `INVALID_REQUEST`, naming the field and its bound.
pub(super) fn check(profile: &GroupProfile) -> Result<(), RequestError> {
    let invalid = |text: String| Err(RequestError::not_done(ErrorCode::INVALID_REQUEST, text));
    for (name, text, max) in [
        ("name", &profile.name, MAX_GROUP_NAME_BYTES),
        ("description", &profile.description, MAX_DESCRIPTION_BYTES),
        ("avatar", &profile.avatar, MAX_AVATAR_BYTES),
        ("announcement", &profile.announcement, MAX_ANNOUNCEMENT_BYTES),
    ] {
        if text.len() > max {
            return invalid(format!("{name} has {} bytes, more than {max}", text.len()));
        }
    }
    if profile.name.chars().any(char::is_control) {
        return invalid("name has a control character".into());
    }
    if profile.custom.len() > MAX_CUSTOM_ENTRIES {
        return invalid(format!(
            "custom has {} entries, more than {MAX_CUSTOM_ENTRIES}",
            profile.custom.len()
        ));
    }
    for (key, value) in &profile.custom {
        if key.is_empty() || key.len() > MAX_CUSTOM_KEY_BYTES || key.chars().any(char::is_control) {
            return invalid(format!(
                "a key of custom has 1 to {MAX_CUSTOM_KEY_BYTES} bytes and no control characters"
            ));
        }
        if value.len() > MAX_CUSTOM_VALUE_BYTES {
            return invalid(format!("a value of custom has more than {MAX_CUSTOM_VALUE_BYTES} bytes"));
        }
    }
    let known = [
        ("join_policy", JoinPolicy::ALL.contains(&profile.join_policy)),
        ("add_policy", AddPolicy::ALL.contains(&profile.add_policy)),
        ("history_for_new_members", HistoryForNewMembers::ALL.contains(&profile.history_for_new_members)),
    ];
    match known.into_iter().find(|(_, known)| !known) {
        Some((name, _)) => invalid(format!("{name} has a value that this server does not know")),
        None => Ok(()),
    }
}
