"""What is cut, broken inside a word, or on top of something else in a page: measured, not seen."""

MEASURE = r"""root => {
  const faults = [], texts = [];
  const scrolls = style => /auto|scroll/.test(style.overflowX);
  const words = node => [...node.data.matchAll(/[^\s\-\/—–\u2e80-\uffef]+/g)];
  const boxes = (node, from, to) => {
    const range = document.createRange();
    range.setStart(node, from); range.setEnd(node, to);
    return [...range.getClientRects()].filter(box => box.width > 0.5);
  };
  const hidden = element => !element.checkVisibility({visibilityProperty: true})
    || element.closest('.jp-OutputPrompt, .jp-OutputArea-promptOverlay, select, style, title');
  const short = text => text.trim().slice(0, 60);
  // the room that a text may take: that of every box around it, up to one that scrolls
  const room = element => {
    let left = -Infinity, right = Infinity, holder = '';
    for (let at = element; at && root.contains(at); at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.display === 'inline' || style.display === 'contents') continue;
      const box = at.getBoundingClientRect();
      if (scrolls(style) && at.scrollWidth > at.clientWidth) break;
      if (box.right < right) { right = box.right; holder = at.tagName; }
      left = Math.max(left, box.left);
      if (at === root) break;
    }
    return {left, right, holder};
  };
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement;
    if (!node.data.trim() || hidden(element)) continue;
    const {left, right, holder} = room(element);
    for (const box of boxes(node, 0, node.data.length))
      texts.push({box, element, said: short(node.data)});
    const column = element.closest('td, th, li, p, pre, figcaption, caption, div, h1') || root;
    const style = getComputedStyle(column);
    const inside = column.clientWidth - parseFloat(style.paddingLeft)
      - parseFloat(style.paddingRight);
    for (const found of words(node)) {
      const lines = boxes(node, found.index, found.index + found[0].length);
      if (lines.some(box => box.right > right + 1.5 || box.left < left - 1.5))
        faults.push(`cut or sticking out of its ${holder}: ${short(node.data)}`);
      const tops = new Set(lines.map(box => Math.round(box.top / 4)));
      const whole = lines.reduce((sum, box) => sum + box.width, 0);
      if (tops.size > 1 && whole <= inside)
        faults.push(`broken inside the word: ${found[0]} (${short(node.data)})`);
    }
  }
  for (const box of [root, ...root.querySelectorAll('*')])  // a part may scroll, a widget must not
    if (box.matches('.widget-box:not(.lab-scrolling)') && !hidden(box)
        && box.scrollWidth > box.clientWidth + 1)
      faults.push(`scrolls as a whole: ${short(box.textContent)}`);
  for (const element of [root, ...root.querySelectorAll('*')]) {
    const style = getComputedStyle(element);
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (own && !hidden(element) && /hidden|clip/.test(style.overflowX)
        && element.scrollWidth > element.clientWidth + 1)
      faults.push(`clipped: ${short(element.textContent)}`);
  }
  texts.sort((a, b) => a.box.top - b.box.top);
  for (let i = 0; i < texts.length; i++)
    for (let j = i + 1; j < texts.length && texts[j].box.top < texts[i].box.bottom - 4; j++) {
      const [a, b] = [texts[i].box, texts[j].box];
      if (texts[i].element !== texts[j].element
          && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
        faults.push(`on top of each other: ${texts[i].said} / ${texts[j].said}`);
    }
  return [...new Set(faults)];
}"""
"""A function of an element: one sentence for each fault below it."""

WIDER = """() => Math.max(0, document.documentElement.scrollWidth
                             - document.documentElement.clientWidth)"""
"""By how many pixels a page is wider than its window."""

PICTURE = r"""() => {
  const svg = document.querySelector('svg'), frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim())
    .map(text => ({said: text.textContent, box: text.getBoundingClientRect(), text}));
  const faults = [];
  for (const {said, box, text} of texts) {
    if (box.left < frame.left || box.right > frame.right || box.top < frame.top
        || box.bottom > frame.bottom)
      faults.push(`beyond the picture: ${said}`);
    const own = text.parentElement.querySelector(':scope > rect');
    const rect = text.parentElement !== svg && own && own.getBoundingClientRect();
    if (rect && (box.left < rect.left || box.right > rect.right))
      faults.push(`beyond its box: ${said}`);
  }
  for (let i = 0; i < texts.length; i++)
    for (let j = i + 1; j < texts.length; j++) {
      const [a, b] = [texts[i].box, texts[j].box];
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
        faults.push(`on top of each other: ${texts[i].said} / ${texts[j].said}`);
    }
  return faults;
}"""
"""One sentence for each fault of the SVG picture that a page shows."""
