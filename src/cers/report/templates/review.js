"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const ASPECTS = ["texture", "boundary", "context", "summary"];
  const VERDICTS = ["right", "wrong", "unsure"];
  const header = JSON.parse(document.body.dataset.header);
  const page = `cers-review-${header.sample}`;
  const articles = [...document.querySelectorAll("article.judge")];
  const names = articles.map((article) => article.dataset.name);
  const unkept = new Map(); // what the browser refused to keep
  let reviewer = "";
  let state = sound({});
  let aspect = 0;

  const fieldset = (index, which) => articles[index].querySelectorAll("fieldset")[which];
  const given = (index) => state.verdicts[names[index]] ?? {};
  const whole = (index) => Object.keys(given(index)).length === ASPECTS.length;
  const gaps = () => [...names.keys()].filter((index) => !whole(index));

  // Each reviewer has a place of their own, so that nobody takes over, or sees, what another one said.
  const place = (name) => `${page}-${name.toLowerCase()}`;

  function read(name) {
    try {
      return JSON.parse(unkept.get(place(name)) ?? localStorage.getItem(place(name)));
    } catch {
      return null;
    }
  }

  function write() {
    const text = JSON.stringify(state);
    try {
      localStorage.setItem(place(reviewer), text);
      unkept.delete(place(reviewer));
    } catch {
      unkept.set(place(reviewer), text);
    }
  }

  // Another tab may have gone on with this review; only where one is in it belongs to the tab.
  function catchUp() {
    const found = read(reviewer);
    if (found) state = { ...sound(found), at: state.at };
  }

  function sound(found) {
    const verdicts = {};
    for (const name of names) {
      const all = Object.entries(found.verdicts?.[name] ?? {});
      const good = all.filter(([a, v]) => ASPECTS.includes(a) && VERDICTS.includes(v));
      if (good.length) verdicts[name] = Object.fromEntries(good);
    }
    const notes = {};
    for (const name of names) if (found.notes?.[name]) notes[name] = String(found.notes[name]);
    const at = Number.isInteger(found.at) ? Math.min(Math.max(found.at, 0), names.length - 1) : 0;
    return { verdicts, notes, at, file: String(found.file ?? ""), changed: Boolean(found.changed) };
  }

  function say(text = standing()) {
    if ($("message").textContent !== text) $("message").textContent = text;
  }

  function standing() {
    if (!reviewer) return "Type your name and press Enter to begin. Verdicts are kept under it.";
    const missing = gaps();
    const done = missing.length ? "" : "All judged. ";
    if (!state.changed) return state.file ? `${done}Saved as ${state.file}.` : `Nothing judged by ${reviewer} yet.`;
    if (done) return `${done}Save the file now.`;
    if (whole(names.length - 1) && state.at === names.length - 1) return listed(missing);
    if (unkept.size) return "This browser keeps nothing for this page: save often.";
    return state.file ? `${state.file} is out of date: save again.` : "Not saved to a file yet.";
  }

  function listed(missing) {
    const numbers = missing.slice(0, 10).map((index) => index + 1);
    return `Still to judge: ${numbers.join(", ")}${missing.length > 10 ? " and more" : ""}.`;
  }

  function show() {
    articles.forEach((article, index) => {
      article.classList.toggle("current", index === state.at);
      ASPECTS.forEach((name, which) => {
        const active = index === state.at && which === aspect;
        fieldset(index, which).classList.toggle("active", active);
        for (const input of fieldset(index, which).querySelectorAll("input")) {
          input.checked = given(index)[name] === input.value;
        }
      });
      const note = state.notes[names[index]] ?? "";
      const field = article.querySelector("textarea");
      if (field.value !== note) field.value = note;
      const spot = $("map").children[index].firstChild;
      const values = Object.values(given(index));
      spot.className = values.includes("wrong") ? "flawed" : whole(index) ? "whole" : values.length ? "part" : "";
      spot.toggleAttribute("aria-current", index === state.at);
      spot.setAttribute("aria-label", `Text ${index + 1}, ${values.length} of ${ASPECTS.length} aspects judged`);
    });
    $("done").textContent = $("progress").value = names.length - gaps().length;
    document.querySelector("main").inert = !reviewer;
    say();
  }

  // Brings the active aspect into view; false where it was out of it.
  function reveal() {
    const box = fieldset(state.at, aspect);
    const { left, top, width, height } = box.getBoundingClientRect();
    const seen = box.contains(document.elementFromPoint(left + width / 2, top + height / 2));
    const before = window.scrollY;
    box.scrollIntoView({ block: "nearest" });
    return seen || window.scrollY === before;
  }

  function take(name) {
    reviewer = $("reviewer").value = name;
    state = sound(read(name) ?? {});
    try {
      sessionStorage.setItem(page, name); // of this tab only: whoever opens the page anew is asked
    } catch {
      // then a reload asks for the name too
    }
    go(state.at);
  }

  function ask() {
    say();
    $("reviewer").focus();
  }

  function go(index) {
    catchUp();
    state.at = Math.min(Math.max(index, 0), names.length - 1);
    const open = ASPECTS.findIndex((name) => !(name in given(state.at)));
    aspect = open < 0 ? 0 : open;
    write();
    show();
    window.scrollTo(0, 0);
    reveal();
  }

  function judge(index, which, verdict) {
    catchUp();
    const verdicts = { ...given(index) };
    if (verdict) verdicts[ASPECTS[which]] = verdict;
    else delete verdicts[ASPECTS[which]];
    if (Object.keys(verdicts).length) state.verdicts[names[index]] = verdicts;
    else delete state.verdicts[names[index]];
    state.changed = true;
    write();
  }

  function answer(verdict) {
    if (!reveal()) return say("The marked aspect was out of view. Read it, then answer.");
    judge(state.at, aspect, verdict);
    if (!verdict) turn(aspect);
    else if (aspect < ASPECTS.length - 1) turn(aspect + 1);
    else onward();
  }

  function turn(which) {
    aspect = Math.min(Math.max(which, 0), ASPECTS.length - 1);
    show();
    reveal();
  }

  function rest() {
    ASPECTS.forEach((name, which) => name in given(state.at) || judge(state.at, which, "right"));
    onward();
  }

  function onward() {
    if (state.at < names.length - 1) return go(state.at + 1);
    unjudged();
    if (gaps().length) say(listed(gaps()));
  }

  function unjudged() {
    const missing = gaps();
    if (missing.length) go(missing.find((index) => index > state.at) ?? missing[0]);
    else show();
  }

  function save() {
    if (!reviewer) return ask();
    catchUp();
    const { verdicts, notes } = state;
    const content = { ...header, reviewer, saved: new Date().toISOString(), verdicts, notes };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" }));
    link.download = `verdicts-${reviewer.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    state.file = link.download;
    state.changed = false;
    write();
    show();
  }

  async function open(file) {
    try {
      const found = JSON.parse(await file.text());
      const name = String(found.reviewer ?? "").trim();
      if (found.format !== header.format || !name) return say(`${file.name} is no file of verdicts.`);
      if (found.sample !== header.sample) return say(`${file.name} belongs to another review page.`);
      const there = Object.keys(sound(read(name) ?? {}).verdicts).length;
      if (there && !confirm(`Replace the verdicts of ${name} on this page?`)) return;
      reviewer = name;
      state = sound({ verdicts: found.verdicts, notes: found.notes, file: file.name });
      write();
      take(name);
      say(`Opened ${file.name}, the verdicts of ${name}.`);
    } catch {
      say(`${file.name} is no file of verdicts.`);
    }
  }

  const keys = {
    1: () => answer("right"),
    2: () => answer("wrong"),
    3: () => answer("unsure"),
    0: () => answer(null),
    a: rest,
    u: unjudged,
    o: () => document.body.classList.toggle("plain"),
    n: () => articles[state.at].querySelector("textarea").focus(),
    s: save,
    arrowleft: () => go(state.at - 1),
    arrowright: onward,
    arrowup: () => turn(aspect - 1),
    arrowdown: () => turn(aspect + 1),
  };

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.activeElement.blur();
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, input[type=text]")) return;
    // Digits by their place, since AZERTY types them with Shift only; letters whatever Caps Lock does.
    const key = event.code.startsWith("Digit") ? event.code.at(-1) : event.key.toLowerCase();
    if (!Object.hasOwn(keys, key)) return;
    event.preventDefault();
    if (reviewer) keys[key]();
    else ask();
  });
  articles.forEach((article, index) => {
    article.querySelectorAll("fieldset").forEach((group, which) => {
      group.addEventListener("change", (event) => {
        judge(index, which, event.target.value);
        aspect = which;
        show();
      });
    });
    article.querySelector("textarea").addEventListener("input", (event) => {
      catchUp();
      if (event.target.value.trim()) state.notes[names[index]] = event.target.value;
      else delete state.notes[names[index]];
      state.changed = true;
      write();
      say();
    });
    article.querySelector(".previous").addEventListener("click", () => go(index - 1));
    article.querySelector(".next").addEventListener("click", onward);
    const spot = document.createElement("button");
    spot.type = "button";
    spot.textContent = index + 1;
    spot.addEventListener("click", () => (reviewer ? go(index) : ask()));
    $("map").append(document.createElement("li"));
    $("map").lastChild.append(spot);
  });
  $("reviewer").addEventListener("change", (event) => {
    const name = event.target.value.trim();
    if (name && name !== reviewer) take(name);
    else event.target.value = reviewer;
  });
  $("reviewer").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const same = event.target.value.trim() === reviewer;
    event.target.blur();
    if (same) save();
  });
  $("save").addEventListener("click", save);
  $("open").addEventListener("change", (event) => {
    if (event.target.files[0]) open(event.target.files[0]);
    event.target.value = "";
  });
  window.addEventListener("storage", (event) => {
    if (event.key !== place(reviewer)) return;
    catchUp();
    show();
  });

  document.body.classList.add("judging");
  let known = null;
  try {
    known = sessionStorage.getItem(page);
  } catch {
    // the name is asked for below
  }
  if (known) take(known);
  else {
    show();
    ask();
  }
})();
