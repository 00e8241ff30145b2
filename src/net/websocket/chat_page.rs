//! The web chat: a page with its style and its scripts, as they lie in `web/`. It needs no other host.

use bytes::Bytes;

use super::upgrade::Page;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files by their paths.
const FILES: [(&str, &str, &str); 4] = [
    ("/", HTML, include_str!("../../../web/index.html")),
    ("/chat.css", CSS, include_str!("../../../web/chat.css")),
    ("/chat.js", SCRIPT, include_str!("../../../web/chat.js")),
    ("/connection.js", SCRIPT, include_str!("../../../web/connection.js")),
];

/// The page of a path, if there is one.
pub fn page(path: &str) -> Option<Page> {
    let (_, content_type, text) = FILES.iter().find(|(name, ..)| *name == path)?;
    Some(Page { content_type, body: Bytes::from_static(text.as_bytes()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_all_that_it_names_and_names_no_other_host() {
        let html = page("/").unwrap();
        let html = std::str::from_utf8(&html.body).unwrap();
        let named = html.split('"').filter(|word| word.ends_with(".js") || word.ends_with(".css"));
        assert_eq!(named.clone().count(), 3);
        named.for_each(|name| assert!(page(&format!("/{name}")).is_some(), "{name}"));
        for (path, _, text) in FILES {
            assert!(!text.contains("http://") && !text.contains("https://"), "{path}");
            // What users write is text, never markup.
            assert!(!text.contains("innerHTML") && !text.contains("insertAdjacentHTML"), "{path}");
        }
        assert_eq!(page("/nothing"), None);
    }
}
