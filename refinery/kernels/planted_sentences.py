"""Sentence pairs whose right answer is known, by language: what a threshold and the guard must tell apart.

Written for this project. ``edit`` and ``paraphrase`` say the same twice; of the other kinds the second sentence says
something else, and losing it would change a law, a dosage or a report.
"""

from __future__ import annotations

from typing import NamedTuple

SAME = ("edit", "paraphrase")
"""Kinds whose two sentences say the same."""
DIFFERENT = ("number", "negation", "roles", "names", "duty")
"""Kinds whose two sentences do not."""


class PlantedPair(NamedTuple):
    """Two sentences and what became of the first in the second."""

    language: str
    kind: str
    left: str
    right: str


_ROWS = """
en | edit | The committee shall publish its annual report before the end of March. | the committee shall publish its annual report before the end of march
en | edit | Press the green button and hold it until the lamp starts to blink. | Press the green button, and hold it until the lamp starts to blink!
en | edit | Water is stored in a covered tank behind the northern wall of the mill. | Water is stored in a covered tank behind the northern wall of teh mill.
en | paraphrase | The shop is closed on Sundays and public holidays. | On Sundays and public holidays the shop does stay shut.
en | paraphrase | Please wash your hands thoroughly with soap. | Kindly clean your hands well using soap.
en | paraphrase | The train was delayed because of heavy snow. | Heavy snow caused the train to run late.
en | number | Article 12 applies to contracts signed by the parties. | Article 13 applies to contracts signed by the parties.
en | number | The patient receives 5 mg of the drug twice a day. | The patient receives 50 mg of the drug twice a day.
en | number | The notice period is three months after delivery of the letter. | The notice period is six months after delivery of the letter.
en | negation | The lessee is liable for damage caused by ordinary use. | The lessee is not liable for damage caused by ordinary use.
en | negation | The drug can be taken with alcohol by adults. | The drug can't be taken with alcohol by adults.
en | negation | Visitors enter the laboratory with a permit. | Visitors enter the laboratory without a permit.
en | roles | Anderson sued Miller for breach of the contract. | Miller sued Anderson for breach of the contract.
en | roles | The dog chased the cat through the old garden. | The cat chased the dog through the old garden.
en | roles | The bank transferred the sum from London to Madrid. | The bank transferred the sum from Madrid to London.
en | roles | He told her the truth about the accident. | She told him the truth about the accident.
en | names | The treaty was signed in Vienna by all delegates. | The treaty was signed in Geneva by all delegates.
en | names | The buyer shall bear the cost of transport. | The seller shall bear the cost of transport.
en | duty | The operator must shut down the pump after the alarm. | The operator may shut down the pump after the alarm.
zh | edit | 本条例自公布之日起施行,由市人民政府负责解释。 | 本条例自公布之日起施行，由市人民政府负责解释！
zh | edit | 各级人民政府应当加强对安全生产工作的领导。 | 各级人民政府应当加强对安全生产工作的领导
zh | paraphrase | 商店在周日和节假日关门。 | 每逢周日和节假日，商店都会关门。
zh | paraphrase | 由于大雪，火车晚点了。 | 火车由于大雪晚点到达了。
zh | number | 依照本法第十二条的规定处以罚款。 | 依照本法第十三条的规定处以罚款。
zh | number | 当事人应当在30日内提出书面申请。 | 当事人应当在60日内提出书面申请。
zh | negation | 承租人对正常损耗承担赔偿责任。 | 承租人对正常损耗不承担赔偿责任。
zh | negation | 该药品可以与酒精同时服用。 | 该药品不可以与酒精同时服用。
zh | roles | 甲方起诉乙方违反合同约定。 | 乙方起诉甲方违反合同约定。
zh | roles | 张伟向李明借款用于购买房屋。 | 李明向张伟借款用于购买房屋。
zh | roles | 狗在院子里追赶那只猫。 | 猫在院子里追赶那只狗。
zh | names | 运输费用由买方承担并提前支付。 | 运输费用由卖方承担并提前支付。
zh | names | 该项目由北京市有关部门审批。 | 该项目由上海市有关部门审批。
zh | duty | 操作人员应当在报警后关闭水泵。 | 操作人员可以在报警后关闭水泵。
de | edit | Der Ausschuss veröffentlicht seinen Bericht vor Ende des Monats März. | der ausschuss veröffentlicht seinen bericht vor ende des monats märz
de | edit | Die Anlage wird einmal im Jahr von einem Fachbetrieb geprüft. | Die Anlage wird einmal im Jahr von einem Fachbetrieb geprüft!
de | paraphrase | Das Geschäft ist sonntags und an Feiertagen geschlossen. | An Sonn- und Feiertagen hat das Geschäft zu.
de | number | Artikel 12 gilt für Verträge zwischen den Parteien. | Artikel 13 gilt für Verträge zwischen den Parteien.
de | number | Die Frist beträgt drei Monate ab Zustellung. | Die Frist beträgt sechs Monate ab Zustellung.
de | negation | Der Mieter haftet für Schäden durch üblichen Gebrauch. | Der Mieter haftet nicht für Schäden durch üblichen Gebrauch.
de | negation | Es besteht ein Anspruch auf Ersatz der Kosten. | Es besteht kein Anspruch auf Ersatz der Kosten.
de | roles | Schneider verklagte Fischer wegen des Vertrages. | Fischer verklagte Schneider wegen des Vertrages.
de | roles | Der Käufer verklagt den Verkäufer vor Gericht. | Den Käufer verklagt der Verkäufer vor Gericht.
de | roles | Er hat ihr die ganze Wahrheit gesagt. | Sie hat ihm die ganze Wahrheit gesagt.
de | names | Der Vertrag wurde in Wien von allen unterzeichnet. | Der Vertrag wurde in Bonn von allen unterzeichnet.
de | duty | Der Betreiber muss die Pumpe abschalten. | Der Betreiber darf die Pumpe abschalten.
fr | edit | Le comité publie son rapport annuel avant la fin du mois de mars. | le comité publie son rapport annuel avant la fin du mois de mars
fr | edit | Les visiteurs laissent leurs sacs au vestiaire du rez-de-chaussée. | Les visiteurs laissent leurs sacs au vestiaire du rez-de-chaussée !
fr | paraphrase | Le magasin est fermé le dimanche et les jours fériés. | Les dimanches et jours fériés, le magasin reste fermé.
fr | number | L'article 12 s'applique aux contrats entre les parties. | L'article 13 s'applique aux contrats entre les parties.
fr | number | Le délai est de trois mois après la remise. | Le délai est de six mois après la remise.
fr | negation | Le locataire est responsable des dommages ordinaires. | Le locataire n'est pas responsable des dommages ordinaires.
fr | negation | On entre dans le laboratoire avec une autorisation. | On entre dans le laboratoire sans une autorisation.
fr | roles | Dupont a poursuivi Martin pour rupture du contrat. | Martin a poursuivi Dupont pour rupture du contrat.
fr | roles | Le chien a poursuivi le chat dans le jardin. | Le chat a poursuivi le chien dans le jardin.
fr | roles | Il lui a dit qu'elle devait partir demain. | Elle lui a dit qu'il devait partir demain.
fr | names | Les frais de transport sont payés par l'acheteur. | Les frais de transport sont payés par le vendeur.
fr | duty | L'exploitant doit arrêter la pompe. | L'exploitant peut arrêter la pompe.
"""  # noqa: E501 - a pair a line


def planted_pairs(languages: tuple[str, ...] | None = None) -> list[PlantedPair]:
    """Return the pairs of some languages, of all if None."""
    rows = [PlantedPair(*(field.strip() for field in row.split(" | "))) for row in _ROWS.strip().splitlines()]
    return [row for row in rows if languages is None or row.language in languages]
