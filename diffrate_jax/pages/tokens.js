const mode = () => document.querySelector("[name=mode]:checked").value;
const cards = data.pictures.map((picture) => new Card(picture));

function redraw() {
  for (const card of cards) { card.stale = true; card.draw(); }
}

function go(position) {
  at = Math.min(last, Math.max(0, position));
  const left = at ? blocks[at - 1].steps[2] : data.tokens;
  slider.value = at;
  slider.style.setProperty("--done", `${(100 * at) / Math.max(last, 1)}%`);
  by("block").textContent = at ? `After block ${blocks[at - 1].block}` : "Input";
  by("count").textContent = `${left} of ${data.tokens} tokens`;
  slider.setAttribute("aria-valuetext", `${by("block").textContent}, ${left} tokens`);
  for (const list of [by("bars"), by("ticks")]) {
    [...list.children].forEach((node, i) => node.classList.toggle("here", i === at));
  }
  by("back").disabled = at === 0;
  redraw();
}

function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => go(at === last ? 0 : at + 1), 900) : 0;
  by("play").setAttribute("aria-pressed", on);
  by("play").setAttribute("aria-label", on ? "Pause" : "Play");
}

function chart() {
  const all = [{ block: "input", steps: Array(3).fill(data.tokens) }, ...blocks];
  const every = Math.ceil(all.length / 25);
  by("bars").append(...all.map(({ block, steps: [coming, middle, left] }, i) => {
    const heights = { pruned: coming - middle, merged: middle - left, kept: left };
    const bar = make("div", { title: `${i ? `block ${block}` : "input"}: ${left} tokens` });
    for (const [kind, count] of Object.entries(heights)) {
      if (!count) continue;
      const part = make("i", { class: kind });
      part.style.height = `${(100 * count) / data.tokens}%`;
      bar.append(part);
    }
    bar.addEventListener("click", () => go(i));
    return bar;
  }));
  by("ticks").append(...all.map(({ block }, i) =>
    make("span", {}, i % every ? "" : String(block))));
  document.querySelector(".chart").style.setProperty("--count", all.length);
  slider.max = last;
}

function legend() {
  const swatch = (text, ...inside) => make("span", {},
    make("svg", { viewBox: "0 0 1 1" }, ...inside), text);
  const whole = "M0 0h1v1h-1z", grey = make("path", { d: whole, fill: "#8a9a86" });
  const items = [swatch(make("span", { id: "merged" }), make("path", {
    d: "M.1 .1h.8v.8h-.8z", fill: "#8a9a86", stroke: "#f05aa5", "stroke-width": 0.2 }))];
  if (data.pictures.some(({ pruned }) => pruned.some((block) => block !== NEVER))) {
    items.push(
      swatch("pruned in this block", grey.cloneNode(), make("path", { d: whole, class: "gone" }),
        make("path", { d: whole, class: "now-gone" })),
      swatch("pruned before", grey.cloneNode(), make("path", { d: whole, class: "gone" })));
  }
  const ramp = make("i");
  ramp.style.background = `linear-gradient(90deg, ${RAMP.map((c) => `rgb(${c})`)})`;
  items.push(make("span", {}, "least", ramp,
    `most of ${data.attention} when the block began; colours by its square root`));
  document.querySelector(".legend").append(...items);
}

function show() {
  by("pictures").classList.remove("colour", "photo", "attention");
  by("pictures").classList.add(mode());
  by("merged").textContent = mode() === "colour" ? "merged: outlined, in their mean colour"
    : "merged: outlined";
  redraw();
}

function keys(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const typing = event.target.matches("input, button");
  const to = { ",": at - 1, ".": at + 1 }[event.key] ?? (typing ? undefined
    : { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key]);
  if (to !== undefined) go(to);
  else if (event.key === " " && !typing) play(!timer);
  else return;
  event.preventDefault();
}

by("facts").textContent = data.facts;
by("pictures").className = cards.length === 1 ? "alone" : "many";
by("pictures").style.setProperty("--card-width", data.pixels < 128 ? "15rem" : "19rem");
by("pictures").append(...cards.map((card) => card.node));
slider.addEventListener("input", () => { play(false); go(Number(slider.value)); });
by("back").addEventListener("click", () => go(at - 1));
by("next").addEventListener("click", () => go(at === last ? 0 : at + 1));
by("play").addEventListener("click", () => play(!timer));
by("mode").addEventListener("change", show);
document.addEventListener("keydown", keys);
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest("article > svg")) pointed?.point(null);
});
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
const watch = new IntersectionObserver((entries) => entries.forEach((entry) => {
  const card = cards.find(({ node }) => node === entry.target);
  card.seen = entry.isIntersecting;
  card.draw();
}), { rootMargin: "300px" });
cards.forEach(({ node }) => watch.observe(node));
chart();
legend();
show();
go(0);
