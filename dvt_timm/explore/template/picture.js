// Saves what is seen as a PNG.

function save() {
  const places = last > 0 ? ["same", "other"] : ["same"];
  const photo = photoAt(state.photo);
  const [gap, line, width] = [24, 26, 1600];
  const half = (width - 3 * gap) / 2;
  const quarter = (half - gap) / 2;
  const style = getComputedStyle(document.body);
  const tall = (canvas, wide) => (canvas.height * wide) / canvas.width;
  const top = gap + 2 * line;
  const right = places.reduce((sum, place) => sum + tall(element(`${place}-raw`), quarter) + 2 * line, 2 * line);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = top + Math.max(tall(element("main"), half) + 3 * line, right) + 3 * line;
  const context = canvas.getContext("2d");
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.color;
  const write = (text, x, y, room, weight = "") => {
    context.font = `${weight} 17px ${style.fontFamily}`;
    context.fillText(text, x, y, room);
  };
  const [leftName, rightName, caption] = MODES[state.mode];
  write(photo.name, gap, gap + line, half, "bold");
  context.drawImage(element("main"), gap, top, half, tall(element("main"), half));
  context.fillRect(gap + state.divider * half - 1, top, 2, tall(element("main"), half));
  const below = top + tall(element("main"), half) + line;
  write(`left ${leftName}, right ${rightName}. ${caption}`, gap, below, half);
  if (!element("scale").hidden) write(`dark ${element("scale-low").textContent}, bright ${element("scale-high").textContent}`, gap, below + line, half);
  const x = 2 * gap + half;
  write(element("query").textContent.split(";")[0], x, gap + line, half, "bold");
  let y = top;
  for (const place of places) {
    ["raw", "denoised"].forEach((row, i) => {
      const tile = element(`${place}-${row}`);
      context.drawImage(tile, x + i * (quarter + gap), y, quarter, tall(tile, quarter));
      write(tile.nextElementSibling.textContent, x + i * (quarter + gap), y + tall(tile, quarter) + line, quarter);
    });
    y += tall(element(`${place}-raw`), quarter) + 2 * line;
  }
  write("Cosine of patches, map's mean taken off: dark 0 or less, bright 1.", x, y + line / 2, half);
  const facts = about.facts.map(([title, text]) => `${title}: ${text}`);
  write(facts.slice(0, 3).join("; "), gap, canvas.height - gap - line, width - 2 * gap);
  write(facts.slice(3).join("; "), gap, canvas.height - gap, width - 2 * gap);
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${photo.name.replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}._-]+/gu, "-")}-${state.mode}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
