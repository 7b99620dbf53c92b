// Searches while one types, or as soon as a picture is chosen, by asking for the same page and taking over its answers.
// Without this file the forms do the same by themselves.
"use strict";

const PAUSE = 250; // milliseconds after the last key
const [words, show, box, file, found, error, status] =
  ["words", "show", "q", "picture", "found", "error", "status"].map((id) => document.getElementById(id));
const asked = new Image();
let running = new AbortController();
let timer = 0;

async function load(address, options) {
  clearTimeout(timer);
  running.abort();
  running = new AbortController();
  const { signal } = running;
  found.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(address, { ...options, signal });
    take(new DOMParser().parseFromString(await answer.text(), "text/html"), answer);
  } catch (problem) {
    if (signal.aborted) return; // a newer question took its place
    fail("The server does not answer. Is jointembed serve still running?");
  }
}

function take(page, answer) {
  const list = page.getElementById("found");
  if (list === null) {
    fail(`The server answers ${answer.status} ${answer.statusText}. Try again in a moment.`);
    return;
  }
  document.title = page.title;
  error.textContent = page.getElementById("error").textContent;
  status.textContent = page.getElementById("status").textContent;
  found.replaceChildren(...list.children);
  found.removeAttribute("aria-busy");
}

function fail(message) {
  error.textContent = message;
  status.textContent = "";
  found.replaceChildren();
  found.removeAttribute("aria-busy");
}

function search(typing) {
  const query = box.value;
  if (file) forget();
  const address = typing && !query.trim() ? "/" : `/?${new URLSearchParams({ q: query })}`;
  history.replaceState(null, "", address);
  load(address);
}

function forget() {
  show.reset();
  URL.revokeObjectURL(asked.src);
  asked.hidden = true;
}

function searchByPicture() {
  const picture = file.files[0];
  URL.revokeObjectURL(asked.src);
  asked.hidden = !picture;
  if (picture) asked.src = URL.createObjectURL(picture);
  if (box) box.value = "";
  history.replaceState(null, "", "/");
  if (picture && picture.size > Number(file.dataset.most)) {
    running.abort();
    fail(`The picture has ${(picture.size / 1e6).toFixed(1)} MB; at most ${file.dataset.most / 1e6} MB are taken.`);
    return;
  }
  load("/", { method: "POST", body: new FormData(show) });
}

if (words) {
  words.addEventListener("submit", (event) => {
    event.preventDefault();
    search(false);
  });
  box.addEventListener("input", (event) => {
    clearTimeout(timer);
    if (!event.isComposing) timer = setTimeout(search, PAUSE, true);
  });
  box.addEventListener("compositionend", () => {
    clearTimeout(timer);
    timer = setTimeout(search, PAUSE, true);
  });
}
if (show) {
  asked.id = "asked";
  asked.alt = "the picture you search with";
  asked.hidden = true;
  file.before(asked);
  show.querySelector("button").hidden = true; // choosing a picture is enough
  show.addEventListener("submit", (event) => {
    event.preventDefault();
    searchByPicture();
  });
  file.addEventListener("change", () => {
    if (file.files.length) searchByPicture();
  });
}

function isGone(picture) {
  const note = document.createElement("span");
  note.className = "gone";
  note.textContent = `${picture.alt}: the picture cannot be opened`;
  picture.replaceWith(note);
}

document.addEventListener(
  "error",
  ({ target }) => {
    if (target === asked) asked.hidden = true; // not a picture; the server says so
    else if (target instanceof HTMLImageElement) isGone(target);
  },
  true,
);
for (const picture of found.querySelectorAll("img")) // those that failed before this script ran
  if (picture.complete && picture.naturalWidth === 0) isGone(picture);
