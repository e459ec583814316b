// Keeps a page fresh without reloading it, and helps with long lists and uploads. Every page works without this file.
"use strict";

document.documentElement.classList.add("has-js");

// ── Clock times: those of log lines in the zone of who reads them ───────────────────────────────────────────────────

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const dayAndClock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function showLocalTimes(page) {
  for (const one of page.querySelectorAll("time.clock")) {
    const moment = new Date(one.dateTime);
    if (isNaN(moment)) continue; // what a worker claims may be anything
    one.textContent = (moment.toDateString() === new Date().toDateString() ? clock : dayAndClock).format(moment);
  }
}

showLocalTimes(document);

// ── Refresh: fetch the same page, and change what has changed in the elements marked data-live ───────────────────────

const interval = 1000 * Number(document.body.dataset.refresh); // not there on the page of a refused form
const state = document.getElementById("live-state");
let failures = 0;

function sameKind(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
}

function changeAttributes(old, fresh) {
  if (old.name === "token") return; // a refresh has none
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
}

// Whether somebody is just using this element: then it stays as it is until the next time.
function inUse(element) {
  if (element.matches("details[open], input:not([type=hidden]), textarea, select")) return true;
  return element === document.activeElement && !element.matches("a, button");
}

function change(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  if (inUse(old)) return;
  changeAttributes(old, fresh);
  changeChildren(old, fresh);
}

// Rows with an id keep their element, wherever they move: what is selected or focused in them stays so.
function changeChildren(old, fresh) {
  const known = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  const wanted = new Set([...fresh.children].map((child) => child.id).filter(Boolean));
  if (old.hasAttribute("data-keep-order")) {
    // A button must not move from under the pointer: rows change where they are, and come and go with the next page.
    for (const next of fresh.children) if (known.has(next.id)) change(known.get(next.id), next);
    return;
  }
  for (const [id, child] of known) if (!wanted.has(id)) child.remove();
  let place = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const same = next.id ? known.get(next.id) : null;
    if (same && same !== place) old.insertBefore(same, place);
    if (same && same.nodeName === next.nodeName) {
      change(same, next);
      place = same.nextSibling;
    } else if (place && sameKind(place, next)) {
      const after = place.nextSibling;
      change(place, next);
      place = after;
    } else {
      old.insertBefore(document.importNode(next, true), place);
    }
  }
  while (place) {
    const after = place.nextSibling;
    place.remove();
    place = after;
  }
}

function selecting(element) {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed && selection.containsNode(element, true);
}

// Output whose first pieces leave the page must not move under who reads it. Browsers do that themselves only at times.
function keepPlace(pieces) {
  const read = pieces.length && pieces[0].getBoundingClientRect().top < 0 ? pieces.filter((one) => one.getBoundingClientRect().bottom > 0) : [];
  const places = read.map((one) => one.getBoundingClientRect().top);
  return () => {
    const kept = read.findIndex((one) => one.isConnected);
    if (kept >= 0) scrollBy({ top: read[kept].getBoundingClientRect().top - places[kept], behavior: "instant" });
  };
}

// Forms that came with a refresh get the token that those of the page have.
function handOutToken() {
  const token = document.querySelector('input[name="token"]:not([value=""])');
  for (const field of token ? document.querySelectorAll('input[name="token"][value=""]') : []) field.setAttribute("value", token.value);
}

let known = ""; // which state of the page this is
let title = document.title; // without what is wrong

// Says what is wrong in the bar at the top, where screen readers announce it once, and in the tab; "" when all is well.
function say(words) {
  if (state.textContent !== words) state.textContent = words;
  const shown = words ? `⚠ ${words.split(/[:.]/)[0]} · ${title}` : title;
  if (document.title !== shown) document.title = shown;
}

async function refresh() {
  const parts = [...document.querySelectorAll("[data-version]")].map((part) => `${part.id}=${part.dataset.version}`);
  const headers = { "X-Live": document.body.dataset.nonce, "X-Known": parts.join(",") };
  if (known) headers["If-None-Match"] = known;
  const answer = await fetch(location.href, { headers, signal: AbortSignal.timeout(30000) });
  if (answer.status === 304) return;
  if (answer.redirected) throw new Error("You are logged out: what you see is old. Log in again, in another tab to keep what you have typed here.");
  if (answer.status < 500 && !answer.ok) throw new Error("This page is not there any more, or not for you: what you see is old.");
  if (!answer.ok) throw new Error("The tracker does not answer: what you see is old. Trying again …");
  let complete = true;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  showLocalTimes(fresh);
  title = fresh.title || title;
  const focused = document.activeElement;
  const goBack = keepPlace([...document.querySelectorAll(".pieces > [id]")]);
  for (const old of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(old.id);
    if (next && !selecting(old)) change(old, next);
    complete = complete && !selecting(old) && !old.matches(":focus-within, :has(details[open])");
  }
  handOutToken();
  known = complete ? answer.headers.get("ETag") || "" : ""; // what was left as it was is fetched again
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true }); // its row moved
  goBack();
}

function pause() {
  const soon = document.querySelector("[data-live-soon]") ? Math.min(interval, 1500) : interval;
  return soon * Math.min(2 ** failures, 12); // a server in trouble is not asked more often
}

let timer;

async function tick() {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      await refresh();
      failures = 0;
      say("");
    } catch (error) {
      failures += 1;
      say(error instanceof TypeError || error.name === "TimeoutError" ? "No connection: what you see is old. Trying again …" : error.message);
    }
  }
  clearTimeout(timer); // a tab that was shown meanwhile has set one of its own
  timer = setTimeout(tick, pause());
}

if (interval && document.querySelector("[data-live]")) {
  timer = setTimeout(tick, pause());
  document.addEventListener("visibilitychange", () => document.hidden || tick());
}

// ── Select all on a page ─────────────────────────────────────────────────────────────────────────────────────────────

for (const all of document.querySelectorAll("[data-select-all]")) {
  all.addEventListener("change", () => {
    for (const box of all.form.elements[all.dataset.selectAll] ? [...all.form.elements].filter((one) => one.name === all.dataset.selectAll) : []) {
      box.checked = all.checked;
    }
  });
}

// ── Uploads with progress ────────────────────────────────────────────────────────────────────────────────────────────

// What is said of an upload whose login has ended; null of any other. Sent once more, it is the next login's.
function endedLogin(form, page) {
  const [login, next] = ['a[href$="/ui/login"]', '[data-again] [name="token"]'].map((what) => page.querySelector(`main ${what}`));
  if (!login && !next) return null;
  const notice = Object.assign(document.createElement("p"), { className: "notice bad", role: "alert" });
  notice.textContent = "The login of this page has ended, so nothing was done. Send it once more";
  if (next) {
    form.elements.token.value = next.value;
    notice.append(".");
  } else {
    const link = Object.assign(document.createElement("a"), { href: login.href, target: "_blank", textContent: "logged in in another tab" });
    notice.append(" when you have ", link, ".");
  }
  return notice;
}

// Shows the reason on the page as it is: so the chosen file stays chosen.
function showRefusal(form, page) {
  const notice = endedLogin(form, page) || document.importNode(page.querySelector(".notice.bad") || page.body, true);
  for (const old of document.querySelectorAll("main > .notice")) old.remove();
  document.querySelector("main").prepend(notice);
  notice.scrollIntoView();
  for (const field of form.elements) {
    field.toggleAttribute("aria-invalid", Boolean(field.name && page.querySelector(`[aria-invalid][name="${field.name}"]`)));
  }
}

for (const form of document.querySelectorAll("[data-upload]")) {
  form.addEventListener("submit", (event) => {
    const [box, bar, words] = [".upload-state", "progress", "[role=status]"].map((what) => form.querySelector(what));
    const request = new XMLHttpRequest();
    event.preventDefault();
    if (form.dataset.sending) return; // a second click sends nothing a second time
    form.dataset.sending = "yes";
    box.hidden = false;
    request.upload.onprogress = ({ loaded, total }) => {
      bar.value = (100 * loaded) / total;
      words.textContent = loaded < total ? `Sent ${Math.floor((100 * loaded) / total)} %` : "Reading the lines …";
    };
    request.onload = () => {
      // What went well ends at the page of the operation. A refusal is this page with the reason.
      if (request.status === 200 && request.responseURL !== form.action) return location.assign(request.responseURL);
      box.hidden = true;
      showRefusal(form, new DOMParser().parseFromString(request.responseText, "text/html"));
    };
    request.onerror = () => {
      words.textContent = "The upload broke off: nothing of it was submitted. Please try again.";
    };
    request.onloadend = () => {
      delete form.dataset.sending;
    };
    request.open("POST", form.action);
    request.send(new FormData(form));
  });
}

// ── On a phone a bar is one row, which is pushed sideways: to the tab that is open ──────────────────────────────────

for (const bar of document.querySelectorAll(".top nav, .tabs, .choices")) {
  const here = bar.querySelector("[aria-current]");
  if (here && bar.scrollWidth > bar.clientWidth) bar.scrollLeft = here.offsetLeft - bar.offsetLeft - (bar.clientWidth - here.offsetWidth) / 2;
}

// ── A page that the browser has kept and shows again is another one: its forms may be sent once more ─────────────────

addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  const fresh = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  document.body.dataset.nonce = fresh;
  for (const field of document.querySelectorAll('input[name="nonce"]')) field.value = fresh;
});

// ── A search that has not come to its end goes on by itself ──────────────────────────────────────────────────────────

async function searchOn(box) {
  const list = document.querySelector(box.dataset.list);
  for (let one = list; (one = one.closest("[data-live]")); ) one.removeAttribute("data-live"); // what was found stays
  document.getElementById("job-pager")?.removeAttribute("data-live");
  while (box.isConnected && box.querySelector("a") && list.querySelectorAll(":scope > [id]").length < 50) {
    const answer = await fetch(box.querySelector("a").href, { headers: { "X-Live": document.body.dataset.nonce } });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const [next, found] = [page.getElementById(box.id), page.querySelector(box.dataset.list)];
    if (!found) return;
    for (const row of [...list.children]) if (!row.id) row.remove();
    for (const row of found.children) {
      if (row.id ? !document.getElementById(row.id) : !list.children.length) list.append(document.importNode(row, true));
    }
    const [pager, other] = [document, page].map((one) => one.querySelector("nav.pager"));
    if (pager && other) pager.replaceWith(document.importNode(other, true));
    else if (pager) pager.remove();
    if (next) box.replaceChildren(...[...next.childNodes].map((one) => document.importNode(one, true)));
    else box.remove();
  }
}

for (const box of document.querySelectorAll("#search-on")) searchOn(box).catch(() => {});
