// The list of samples: filters over columns of small integers, a list that holds only the rows in sight, and one sample's texts,
// unpacked when they are asked for. Every text goes in as textContent: what a model wrote never becomes markup. Nothing is fetched.
'use strict';
(async () => {
  const ROW_PX = 28, SPARE_ROWS = 8, KEPT_BLOCKS = 48, PAGE_ROWS = 20;
  const NONE = 255, NO_ROW = 0xffffffff, RIGHT = 1, TIE = 2, REFUSED = 4, ABSENT = 8, SPLIT = 16, SILENT = 32, UNJUDGED = 64; // as in view/mod.rs
  const at = (id) => document.getElementById(id);
  const meta = JSON.parse(at('meta').textContent);
  const n = meta.n, isPaired = meta.runs.length > 1, isOpen = meta.is_open;

  // ---- data -------------------------------------------------------------------------------------------------------------------
  async function unpack(element) {
    const text = atob(element.textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate-raw'));
    return new Response(stream).arrayBuffer();
  }
  const utf8 = new TextDecoder();
  const packed = await unpack(at('columns'));
  const kinds = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array };
  const column = {};
  for (const { name, kind, offset } of meta.columns) column[name] = new kinds[kind](packed, offset, n);
  const ids = JSON.parse(utf8.decode(new Uint8Array(packed, meta.ids_offset)));
  let lowerIds = null; // made at the first search
  const runs = meta.runs.map((_, index) => {
    const of = (name) => column[`r${index}_${name}`];
    return { predicted: of('predicted'), flags: of('flags'), nVotes: of('n_votes'), nAgree: of('n_agree'), shown: of('shown') };
  });
  const a = runs[0];
  let b = isPaired ? runs[1] : null; // what a is held against

  const waiting = []; // the page's end, with the last blocks, may not be read yet
  document.addEventListener('DOMContentLoaded', () => waiting.forEach((go) => go()));
  const element = (id) => at(id) || (document.readyState === 'loading'
    ? new Promise((found) => waiting.push(() => found(at(id)))) : null);
  const blocks = new Map(); // name -> promise of text, the newest last
  function blockText(name) {
    let text = blocks.get(name);
    blocks.delete(name);
    if (!text) text = Promise.resolve(element(name)).then(unpack).then((bytes) => utf8.decode(bytes));
    blocks.set(name, text);
    if (blocks.size > KEPT_BLOCKS) blocks.delete(blocks.keys().next().value);
    return text;
  }
  const parsed = new Map();
  async function block(name) {
    if (!parsed.has(name)) {
      const rows = JSON.parse(await blockText(name));
      parsed.set(name, rows);
      if (parsed.size > KEPT_BLOCKS) parsed.delete(parsed.keys().next().value);
    }
    return parsed.get(name);
  }
  const rowOf = (kind, i) => column[kind + '_row'][i];
  function place(kind, i) { // the block of sample i's row, and where in it
    const row = rowOf(kind, i), starts = meta.blocks[kind].starts;
    let low = 0, high = starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= row) low = middle; else high = middle - 1;
    }
    return [`${kind}-${low}`, row - starts[low]];
  }
  async function texts(kind, i) {
    if (!meta.blocks[kind] || rowOf(kind, i) === NO_ROW) return null;
    const [name, row] = place(kind, i);
    return (await block(name))[row];
  }

  // ---- state: what the fragment of the address says -----------------------------------------------------------------------------
  const FIELDS = ['search', 'task', 'outcome', 'against', 'changed', 'key', 'answer', 'shown', 'subject'];
  const letter = (option) => (option < 26 ? String.fromCharCode(65 + option) : String(option + 1));
  const options = (names) => names.map((name, i) => [String(i), name]);
  const letters = options(Array.from({ length: meta.most_choices }, (_, i) => letter(i)));
  const menus = {
    task: meta.tasks.map((name) => [name, name]),
    outcome: isOpen ? openOutcomes()
      : [['right', 'right'], ['wrong', 'wrong, all'], ['unparsed', 'unparsed'], ['refused', 'refused'], ['tie', 'tied vote']],
    against: meta.runs.slice(2).map((_, index) => [letter(index + 2), letter(index + 2)]),
    changed: isPaired ? [['right-wrong', 'right → wrong'], ['wrong-right', 'wrong → right'],
      ...(isOpen ? [] : [['answer', 'another answer'], ['same', 'same answer']])] : [],
    key: letters.map(([, name]) => [name, name]),
    answer: letters.map(([, name]) => [name, name]),
    shown: meta.is_shuffled ? letters.map(([, name], i) => [String(i + 1), `place ${i + 1}`]) : [],
    subject: meta.subjects.length > 1 ? meta.subjects.map((name) => [name, name || '(none)']) : [],
  };
  function openOutcomes() { // what no number of judges can come to is not offered
    const nJudges = a.nVotes.reduce((most, count) => Math.max(most, count), 0);
    const judged = [['right', 'right'], ['wrong', 'wrong, all'], ['unparsed', 'a verdict is missing']];
    const ofSeveral = [['split', 'judges disagree'], ['tie', 'tied judges']];
    return [...(nJudges > 0 ? judged : []), ...(nJudges > 1 ? ofSeveral : []), ['refused', 'refused']];
  }
  for (const [id, entries] of Object.entries(menus)) {
    const any = new Option(id === 'against' ? 'B' : 'all', '');
    at(id).replaceChildren(any, ...entries.map(([value, text]) => new Option(text, value === '' ? ' ' : value)));
    at(id).parentElement.hidden = entries.length < (id === 'task' ? 2 : 1);
  }
  let open = -1, shownRows = new Uint32Array(0), hits = null, hitsFor = null;
  const value = (id) => at(id).value;

  function readFragment() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const id of FIELDS) at(id).value = state.get(id) ?? '';
    for (const id of FIELDS) if (at(id).value === '' && id !== 'search') at(id).value = ''; // a value that is no longer offered
    at('in-texts').checked = state.get('in') === 'texts';
    const asked = Number.parseInt(state.get('open') ?? '', 10);
    open = asked >= 1 && asked <= n ? asked - 1 : -1;
  }
  function writeFragment() {
    const state = new URLSearchParams();
    for (const id of FIELDS) if (value(id) !== '') state.set(id, value(id));
    if (at('in-texts').checked) state.set('in', 'texts');
    if (open >= 0) state.set('open', String(open + 1));
    history.replaceState(null, '', '#' + state);
  }

  // ---- filters ----------------------------------------------------------------------------------------------------------------
  function predicates() {
    const tests = [];
    if (isPaired) b = runs[value('against') ? value('against').charCodeAt(0) - 65 : 1];
    const chosen = (id, list) => list.indexOf(value(id) === ' ' ? '' : value(id));
    const names = letters.map(([, name]) => name);
    if (value('task')) { const task = chosen('task', meta.tasks); tests.push((i) => column.task[i] === task); }
    if (value('subject')) { const subject = chosen('subject', meta.subjects); tests.push((i) => column.subject[i] === subject); }
    if (value('key')) { const key = chosen('key', names); tests.push((i) => column.key[i] === key); }
    if (value('answer')) { const answer = chosen('answer', names); tests.push((i) => a.predicted[i] === answer); }
    if (value('shown')) { const bit = 1 << (Number(value('shown')) - 1); tests.push((i) => (a.shown[i] & bit) !== 0); }
    const outcome = {
      right: (i) => (a.flags[i] & RIGHT) !== 0, wrong: (i) => (a.flags[i] & (RIGHT | UNJUDGED)) === 0,
      unparsed: isOpen ? (i) => (a.flags[i] & SILENT) !== 0 : (i) => a.predicted[i] === NONE && (a.flags[i] & REFUSED) === 0,
      split: (i) => (a.flags[i] & SPLIT) !== 0,
      refused: (i) => (a.flags[i] & REFUSED) !== 0, tie: (i) => (a.flags[i] & TIE) !== 0,
    }[value('outcome')];
    if (outcome) tests.push(outcome);
    const both = (i) => (b.flags[i] & ABSENT) === 0;
    const changed = isPaired && {
      'right-wrong': (i) => both(i) && (a.flags[i] & RIGHT) !== 0 && (b.flags[i] & (RIGHT | UNJUDGED)) === 0,
      'wrong-right': (i) => both(i) && (a.flags[i] & (RIGHT | UNJUDGED)) === 0 && (b.flags[i] & RIGHT) !== 0,
      answer: (i) => both(i) && a.predicted[i] !== b.predicted[i], same: (i) => both(i) && a.predicted[i] === b.predicted[i],
    }[value('changed')];
    if (changed) tests.push(changed);
    const search = value('search').toLowerCase();
    if (search) {
      lowerIds ??= ids.map((id) => id.toLowerCase());
      const inTexts = at('in-texts').checked ? hits : null;
      const isHit = (i) => Object.keys(inTexts).some((kind) => inTexts[kind][rowOf(kind, i)] === 1);
      tests.push((i) => lowerIds[i].includes(search) || (inTexts !== null && isHit(i)));
    }
    return tests;
  }
  function filter() {
    const tests = predicates(), found = new Uint32Array(n);
    let count = 0;
    rows: for (let i = 0; i < n; i++) {
      for (const test of tests) if (!test(i)) continue rows;
      found[count++] = i;
    }
    shownRows = found.subarray(0, count);
    tellCount();
    at('rows').style.height = count * ROW_PX + 'px';
    draw();
  }
  const number = (count) => count.toLocaleString('en');
  function tellCount(progress = '') {
    const share = (count, of) => (of ? ((100 * count) / of).toFixed(2) + ' %' : '-');
    const shares = runs.map(({ flags }, index) => {
      let right = 0, held = 0;
      for (const i of shownRows) if (!(flags[i] & (ABSENT | UNJUDGED))) { held++; right += flags[i] & RIGHT; }
      const words = isOpen && shownRows.length && !held ? 'not judged' : share(right, held) + (index === 0 ? ' right' : '');
      return words + (isPaired ? ' in ' + letter(index) : '');
    });
    at('count').textContent = `${number(shownRows.length)} of ${number(n)} samples, ${shares.join(', ')}${progress}`;
  }
  // Texts are searched block by block; a newer search ends an older one.
  async function scan() {
    const search = at('in-texts').checked ? value('search').toLowerCase() : '';
    if (search === hitsFor) return;
    hitsFor = search;
    const kindsOf = Object.keys(meta.blocks);
    hits = search ? Object.fromEntries(kindsOf.map((kind) => [kind, new Uint8Array(meta.blocks[kind].n_rows)])) : null;
    if (!search) return;
    const inJson = JSON.stringify(search).slice(1, -1).toLowerCase();
    const nBlocks = kindsOf.reduce((sum, kind) => sum + meta.blocks[kind].starts.length, 0);
    let done = 0, drawn = performance.now();
    for (const kind of kindsOf) {
      const starts = meta.blocks[kind].starts;
      for (let index = 0; index < starts.length; index++) {
        const text = utf8.decode(await unpack(await element(`${kind}-${index}`)));
        if (hitsFor !== search) return;
        done++;
        if (text.toLowerCase().includes(inJson)) {
          JSON.parse(text).forEach((row, i) => {
            if (row && textOf(kind, row).toLowerCase().includes(search)) hits[kind][starts[index] + i] = 1;
          });
        }
        if (performance.now() - drawn > 250) {
          filter();
          tellCount(`; ${Math.floor((100 * done) / nBlocks)} % of the texts searched`);
          drawn = performance.now();
        }
      }
    }
    document.documentElement.dataset.scanned = search;
    filter();
  }
  const textOf = (kind, row) => {
    if (kind === 'q') return [row.stem, ...(isOpen ? [row.reference] : [row.context ?? '', ...row.choices])].join('\n');
    return (isOpen ? [row.answer, ...row.verdicts.map((one) => one.text)] : row.votes.map((vote) => vote.text)).join('\n');
  };

  // ---- the list: rows in sight only ---------------------------------------------------------------------------------------------
  const make = (tag, className = '', text = '') => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== '') made.textContent = text;
    return made;
  };
  function mark(one, i) {
    if (one.flags[i] & ABSENT) return ['', ''];
    if (one.flags[i] & RIGHT) return ['✓', 'right'];
    if (one.flags[i] & REFUSED) return ['⊘', 'none'];
    if (one.flags[i] & UNJUDGED) return ['·', ''];
    return one.predicted[i] === NONE && !isOpen ? ['∅', 'none'] : ['✗', 'wrong'];
  }
  function answered(one, i) { // the option; of judges, how many of them call the answer right
    if (one.flags[i] & ABSENT) return '';
    if (isOpen) return one.nVotes[i] ? `${one.nAgree[i]}/${one.nVotes[i]}` : '-';
    return one.predicted[i] === NONE ? '-' : letter(one.predicted[i]);
  }
  function row(place) {
    const i = shownRows[place], made = make('div', 'row');
    made.id = 'row' + i;
    made.setAttribute('role', 'option');
    made.setAttribute('aria-selected', String(i === open));
    made.style.top = place * ROW_PX + 'px';
    made.dataset.sample = i;
    made.append(make('span', 'nr', String(i + 1)));
    for (const one of runs) { const [sign, kind] = mark(one, i); made.append(make('span', 'mark ' + kind, sign)); }
    const votes = a.nVotes[i] > 1 && !isOpen ? ` ${a.nAgree[i]}/${a.nVotes[i]}` : '';
    const key = isOpen ? '' : `${letter(column.key[i])}: `;
    made.append(make('span', 'vs', `${key}${runs.map((one) => answered(one, i)).join(' ')}${votes}`));
    made.append(make('span', 'id', ids[i]), make('span', 'stem'));
    return made;
  }
  function heads() {
    const names = runs.map((_, index) => letter(index)), marks = isPaired ? names : [''];
    if (runs.length > 2) at('left').style.setProperty('--vs', `${3 + 1.1 * runs.length}rem`);
    at('heads').replaceChildren(make('span', 'nr', '#'), ...marks.map((name) => make('span', 'mark', name)),
      make('span', 'vs', isOpen ? 'judges' : isPaired ? 'key: ' + names.join(' ') : 'key: answer'), make('span', 'id', 'id'), make('span', 'stem', 'question'));
  }
  let excerptTimer = 0;
  function draw() {
    const list = at('list');
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - SPARE_ROWS);
    const last = Math.min(shownRows.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + SPARE_ROWS);
    const made = [];
    for (let place = first; place < last; place++) made.push(row(place));
    at('rows').replaceChildren(...made);
    made.forEach(excerptIfAtHand);
    clearTimeout(excerptTimer);
    excerptTimer = setTimeout(() => made.forEach(excerpt), 60);
    list.setAttribute('aria-activedescendant', open >= 0 && at('row' + open) ? 'row' + open : '');
  }
  function putExcerpt(made, question) {
    if (question) made.lastChild.textContent = question.stem.slice(0, 300).replace(/\s+/g, ' ');
  }
  function excerptIfAtHand(made) {
    const i = Number(made.dataset.sample);
    if (!meta.blocks.q || rowOf('q', i) === NO_ROW) return;
    const [name, index] = place('q', i);
    if (parsed.has(name)) putExcerpt(made, parsed.get(name)[index]);
  }
  async function excerpt(made) {
    if (made.isConnected && meta.blocks.q && made.lastChild.textContent === '') putExcerpt(made, await texts('q', Number(made.dataset.sample)));
  }

  // ---- one sample ---------------------------------------------------------------------------------------------------------------
  async function show() {
    const i = open, detail = at('detail');
    if (i < 0) { detail.replaceChildren(make('p', 'soft', 'Choose a sample: a click, or up and down in the list. / goes to the search.')); return; }
    const [question, ...answers] = await Promise.all([texts('q', i), ...runs.map((_, index) => texts('r' + index, i))]);
    if (i !== open) return;
    const parts = [make('h3', '', `${meta.tasks[column.task[i]]}/${ids[i]}`)];
    const subject = meta.subjects[column.subject[i]];
    parts.push(make('p', 'soft', `sample ${i + 1}${subject ? ', ' + subject : ''}`));
    if (question?.context) {
      const folded = make('details');
      folded.append(make('summary', '', 'Context'), make('p', 'text', question.context));
      parts.push(folded);
    }
    parts.push(question ? make('p', 'text stem-text', question.stem)
      : make('p', 'soft', 'The question\'s text is not in the run: it was made before runs kept questions.jsonl.'));
    if (!isOpen) parts.push(choices(i, question, answers));
    else if (question) parts.push(make('p', 'soft', 'Reference answer'), make('p', 'text reference', question.reference));
    meta.runs.forEach((name, at) => parts.push(...answer(i, at, name, answers[at])));
    detail.replaceChildren(...parts);
    detail.scrollTop = 0;
    document.documentElement.dataset.opened = String(i + 1);
  }
  function softmax(logps) {
    const most = Math.max(...logps), powers = logps.map((logp) => Math.exp(logp - most));
    const sum = powers.reduce((x, y) => x + y, 0);
    return powers.map((power) => power / sum);
  }
  function choices(i, question, answers) {
    const list = make('ol'), shares = answers.map((one) => (one?.logps?.length ? (one.logps.includes(null) ? [] : softmax(one.logps)) : null));
    for (let option = 0; option < column.n_choices[i]; option++) {
      const item = make('li', option === column.key[i] ? 'key' : ''), text = make('span');
      text.append(make('span', 'choice', question ? question.choices[option] ?? '' : ''));
      if (option === column.key[i]) text.append(make('span', 'tag right', 'key'));
      runs.forEach((one, at) => {
        if (one.predicted[i] !== option || one.flags[i] & ABSENT) return;
        text.append(make('span', 'tag ' + (option === column.key[i] ? 'right' : 'wrong'), isPaired ? `answer of ${letter(at)}` : 'answer'));
      });
      item.append(make('strong', '', letter(option)), text);
      shares.forEach((share, at) => {
        if (!share) return;
        const bar = make('span', 'prob'), length = make('i');
        const logp = answers[at].logps[option], percent = 100 * (share[option] ?? 0);
        length.style.width = percent.toFixed(2) + '%';
        bar.append(make('span', '', isPaired ? letter(at) : ''), length,
          make('span', '', logp === null ? 'not told' : (share.length ? `${percent.toFixed(1)} % ` : '') + `(logp ${logp.toFixed(3)})`));
        item.append(bar);
      });
      list.append(item);
    }
    return list;
  }
  function answer(i, at, name, text) {
    const one = runs[at], parts = [];
    if (one.flags[i] & ABSENT || !text) return [make('h4', '', name), make('p', 'soft', 'This question is not in the run.')];
    const [sign, kind] = mark(one, i);
    const words = { '✓': 'right', '✗': 'wrong', '⊘': 'refused', '∅': 'unparsed', '·': 'not judged' }[sign];
    const head = make('h4');
    head.append(make('span', kind, `${sign} ${words}`), make('span', '', isPaired ? `, ${name}` : ''));
    const votesFor = one.nVotes[i] > 1 && one.predicted[i] !== NONE ? `, ${one.nAgree[i]} of ${one.nVotes[i]} votes for ${letter(one.predicted[i])}` : '';
    const byJudges = one.nVotes[i] > 0 ? `, ${one.nAgree[i]} of ${one.nVotes[i]} judges call it right` : '';
    const tied = one.flags[i] & TIE ? (isOpen ? ', tied: wrong' : ', tied: the first seen wins') : '';
    head.append(make('span', '', (isOpen ? byJudges : votesFor) + tied));
    parts.push(head);
    if (text.refused) parts.push(make('p', 'text', text.refused));
    if (isOpen) parts.push(...openAnswer(text));
    else text.votes.forEach((vote, index) => parts.push(voteOf(vote, index, text.votes.length)));
    if (text.prompt_sha256) { const sha = make('p', 'soft', 'prompt_sha256 '); sha.append(make('code', '', text.prompt_sha256)); parts.push(sha); }
    return parts;
  }
  function voteOf(vote, index, nVotes) {
    const made = make('div', 'vote'), isPlain = vote.order.every((original, shown) => original === shown);
    const said = [
      nVotes > 1 ? `vote ${index + 1}` : '', vote.answer === null ? 'unparsed' : `answer ${letter(vote.answer)}`,
      isPlain ? '' : `options shown as ${vote.order.map(letter).join(' ')}`, `ended by ${vote.finish_reason}`,
      vote.logp === null ? '' : `logp ${vote.logp.toFixed(2)}`, vote.reasoning_removed ? 'a reasoning block was cut out before reading' : '',
      vote.shots.length ? `examples: ${vote.shots.join(', ')}` : '',
    ];
    made.append(make('p', 'soft', said.filter(Boolean).join(' · ')), make('p', 'text', vote.text || '(empty)'));
    return made;
  }

  function quoted(className, words, text) {
    const made = make('div', 'vote ' + className);
    made.append(make('p', 'soft', words.filter(Boolean).join(' · ')), make('p', 'text', text || '(empty)'));
    return made;
  }
  function openAnswer(text) {
    const words = [text.finish_reason ? `ended by ${text.finish_reason}` : '',
      text.reasoning_removed ? 'a reasoning block was cut out before judging' : '',
      ...text.overlap.map(([name, value]) => `${name} ${(100 * value).toFixed(1)}`)];
    const judged = text.verdicts.map((one) => quoted('verdict', [`judge ${one.judge}: ${one.verdict}`], one.text));
    return [...(text.refused ? [] : [quoted('answer', words, text.answer)]), ...judged];
  }

  // ---- what the reader does -------------------------------------------------------------------------------------------------------
  function choose(i, isScrolled) {
    open = i;
    writeFragment();
    if (isScrolled) {
      const list = at('list'), top = shownRows.indexOf(i) * ROW_PX;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PX - list.clientHeight;
    }
    draw();
    return show();
  }
  function step(by) {
    if (!shownRows.length) return;
    const now = open < 0 ? -1 : shownRows.indexOf(open);
    choose(shownRows[Math.min(shownRows.length - 1, Math.max(0, now + by))], true);
  }
  function changed() {
    const started = performance.now();
    at('list').scrollTop = 0;
    scan();
    filter();
    writeFragment();
    document.documentElement.dataset.filterMs = (performance.now() - started).toFixed(1);
  }
  at('filters').addEventListener('input', changed);
  at('filters').addEventListener('submit', (event) => event.preventDefault());
  at('filters').addEventListener('reset', () => setTimeout(changed));
  at('list').addEventListener('scroll', () => requestAnimationFrame(draw));
  at('list').addEventListener('click', (event) => {
    const found = event.target.closest('.row');
    if (found) choose(Number(found.dataset.sample), false);
  });
  const steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: PAGE_ROWS, PageUp: -PAGE_ROWS, Home: -n, End: n };
  document.addEventListener('keydown', (event) => {
    const isTyping = document.activeElement?.matches('input, select') ?? false;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'Escape' && isTyping) { at('list').focus(); return; }
    if (event.key === '/' && !isTyping) { at('search').focus(); event.preventDefault(); return; }
    const isList = document.activeElement === at('list');
    if (isTyping || !(event.key in steps) || !(isList || event.key === 'j' || event.key === 'k')) return;
    event.preventDefault();
    step(steps[event.key]);
  });
  addEventListener('resize', draw);
  function fromFragment() {
    readFragment();
    scan();
    filter();
    const top = shownRows.indexOf(open) * ROW_PX;
    if (top >= 0) { at('list').scrollTop = Math.max(0, top - 5 * ROW_PX); draw(); }
    return show();
  }
  addEventListener('hashchange', fromFragment);

  at('filters').hidden = at('panes').hidden = false;
  heads();
  fromFragment();
  document.documentElement.dataset.listMs = performance.now().toFixed(1);
})();
