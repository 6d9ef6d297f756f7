/* A part of a page that is built anew takes its focus away; this gives it to the part's new element of the same name. */
addEventListener("DOMContentLoaded", () => {
  let part = null, name = null
  document.addEventListener("focusin", ({ target }) => {
    part = target.closest(".live")
    name = target.getAttribute("aria-label")
  })
  document.addEventListener("pointerdown", () => (part = null))
  new MutationObserver(() => {
    if (!part?.isConnected || !name || document.activeElement !== document.body) return
    const named = [...part.querySelectorAll("[aria-label]")].find((each) => each.getAttribute("aria-label") === name)
    named?.focus({ preventScroll: true })
  }).observe(document.body, { childList: true, subtree: true })
})
