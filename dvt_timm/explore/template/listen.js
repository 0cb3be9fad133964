// Listens to pointer and keys, and builds what depends on the photos.

// ---- pointer ----

function patchUnder(event, canvas, photo) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * photo.columns);
  const row = Math.floor(((event.clientY - box.top) / box.height) * photo.rows);
  if (column < 0 || row < 0 || column >= photo.columns || row >= photo.rows) return null;
  return row * photo.columns + column;
}

function listen(canvas, photoIndex) {
  const point = (event) => {
    const index = patchUnder(event, canvas, photoAt(photoIndex()));
    if (index !== null) state.query = { photo: photoIndex(), index };
    redraw();
    return index;
  };
  canvas.addEventListener("pointermove", (event) => {
    if (!state.held || event.buttons) point(event);
  });
  canvas.addEventListener("click", (event) => {
    const before = state.query;
    const isSame = point(event) === before.index && photoIndex() === before.photo;
    state.held = !(state.held && isSame);
    element("main").focus({ preventScroll: true }); // so that arrows go on from there
  });
}

function divideAt(event) {
  const box = element("main").getBoundingClientRect();
  state.divider = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  redraw();
}

element("handle").addEventListener("pointerdown", (event) => {
  element("handle").setPointerCapture(event.pointerId);
  event.preventDefault();
});
element("handle").addEventListener("pointermove", (event) => {
  if (element("handle").hasPointerCapture(event.pointerId)) divideAt(event);
});

// ---- keyboard ----

function movePatch(down, across) {
  const photo = photoAt(state.query.photo);
  const row = Math.floor(state.query.index / photo.columns) + down;
  const column = (state.query.index % photo.columns) + across;
  const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
  state.query.index = inside(row, photo.rows) * photo.columns + inside(column, photo.columns);
  state.held = true;
}

function setMode(mode) {
  state.mode = mode;
  document.querySelector(`input[value="${mode}"]`).checked = true;
}

function setOpacity(opacity) {
  state.opacity = opacity;
  element("opacity").value = 100 * opacity;
}

function setGrid(grid) {
  state.grid = grid;
  element("grid").checked = grid;
}

function nextDivider(divider) {
  return divider === 0.5 ? 1 : divider === 1 ? 0 : 0.5;
}

function nextSecond() {
  let index = state.second;
  do index = (index + 1) % about.photos.length; while (index === state.photo);
  return index;
}

const KEYS = { // wherever the focus is
  __proto__: null,
  n: () => show(Math.min(state.photo + 1, last)),
  p: () => show(Math.max(state.photo - 1, 0)),
  m: () => last > 0 && showSecond(nextSecond()),
  d: () => (state.divider = nextDivider(state.divider)),
  o: () => setOpacity(state.opacity > 0 ? 0 : 0.85),
  g: () => setGrid(!state.grid),
  s: () => save(),
  1: () => setMode("pca"),
  2: () => setMode("clusters"),
  3: () => setMode("norm"),
  4: () => setMode("taken"),
};

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// What a key does while the photo has the focus: elsewhere arrows and Space scroll the page or move a control.
function pictureKey(event) {
  if (event.key === " ") return () => (state.held = !state.held);
  const step = ARROWS[event.key];
  return step && (() => movePatch(...step.map((patches) => patches * (event.shiftKey ? 5 : 1))));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
  const action = event.target === element("main") && pictureKey(event) || KEYS[event.key.toLowerCase()];
  if (!action) return;
  action();
  event.preventDefault();
  redraw();
});

// ---- the page ----

function build() {
  for (const [title, text] of about.facts) {
    const [group, dt, dd] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
    dt.textContent = title;
    dd.textContent = text;
    group.append(dt, dd);
    element("facts").append(group);
  }
  about.photos.forEach((photo, index) => {
    const button = document.createElement("button");
    const image = new Image();
    image.src = "data:image/jpeg;base64," + photo.thumbnail;
    image.alt = photo.name;
    button.type = "button";
    button.title = photo.name;
    button.dataset.index = index;
    button.append(image);
    button.addEventListener("click", () => show(index));
    element("strip").append(button);
    element("second").append(new Option(photo.name, index));
  });
  const stops = about.colormap.filter((_, i) => i % 15 === 0).map((color) => `rgb(${color})`);
  for (const bar of document.querySelectorAll(".scale i")) bar.style.background = `linear-gradient(to right, ${stops})`;
  element("second-part").hidden = last === 0;
  element("strip").hidden = last === 0;

  listen(element("main"), () => state.photo);
  for (const row of ["raw", "denoised"]) {
    listen(element(`same-${row}`), () => state.photo);
    listen(element(`other-${row}`), () => state.second);
  }
  const onInput = (id, change) => element(id).addEventListener("input", (event) => {
    change(event.target);
    redraw();
  });
  onInput("divider", (input) => (state.divider = input.value / 100));
  onInput("opacity", (input) => (state.opacity = input.value / 100));
  onInput("grid", (input) => (state.grid = input.checked));
  onInput("second", (input) => showSecond(Number(input.value)));
  for (const radio of document.querySelectorAll("input[name=mode]")) {
    radio.addEventListener("change", () => {
      state.mode = radio.value;
      redraw();
    });
  }
  element("save").addEventListener("click", save);
  show(0);
}

build();
