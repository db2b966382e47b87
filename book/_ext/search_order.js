// Pages with answers stay findable, behind everything else. Read by Sphinx's own search (html_search_scorer).
var Scorer = {
  score: ([page, , , , score]) => (page.startsWith("solutions/") ? score / 1000 : score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
