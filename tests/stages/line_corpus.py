"""A small set of pages written for the line rules, in six languages: text, its frame of links and bars, and code."""

# ruff: noqa: E501 - pages are easier to read on one line each
from __future__ import annotations

EN_STORY = (
    "The ferry left the harbour at nine. It carried forty people and a piano.\n"
    "Nobody on board could play it well. The captain had bought it at a sale.\n"
    "When the wind rose, the strings began to hum. The children laughed at the sound.\n"
    "At noon the coast was out of sight. Everyone ate bread and cheese on deck."
)
DE_STORY = (
    "Der Zug hielt an jedem Bahnhof. Niemand stieg ein, und niemand stieg aus.\n"
    "Im Speisewagen gab es nur noch Suppe. Der Koch entschuldigte sich bei allen.\n"
    "Hinter dem Tunnel begann der Schnee. Die Kinder drückten die Nasen an die Scheiben."
)
FR_STORY = (
    "Le marché ouvre à six heures du matin. Les premiers clients viennent pour le poisson.\n"
    "Une vieille dame vend des œufs et du miel. Elle connaît le prénom de chacun.\n"
    "Vers midi, on range les étals. La place redevient un lieu pour les pigeons."
)
RU_STORY = (
    "Старый маяк стоит на краю мыса. Его свет видно за двадцать миль.\n"
    "Смотритель живёт здесь с двумя собаками. Зимой к нему никто не приезжает.\n"
    "По вечерам он пишет письма сестре. Она отвечает раз в год, на праздник."
)
ZH_STORY = (
    "老街的尽头有一家茶馆。掌柜姓陈，在这里守了三十年。\n"
    "每天清晨，他先把门前的石板扫干净，再烧第一壶水。\n"
    "来喝茶的多是附近的老人，他们下棋，也谈天气和收成。\n"
    "茶馆没有招牌，但城里人都知道它在哪里。"
)
CODE = (
    "def area(width, height):\n"
    '    """Return the area of a rectangle."""\n'
    "    if width < 0 or height < 0:\n"
    '        raise ValueError("sides are not negative")\n'
    "    return width * height\n"
    "\n"
    "SIZES = {1: area(1, 2), 2: area(3, 4)}\n"
)

PAGES: dict[str, tuple[str, str]] = {
    # name: (language, text)
    "en-clean": ("en", EN_STORY),
    "en-framed": ("en", "Home\nAbout us\n\n" + EN_STORY + "\n\nWe use cookies to make this site better.\nRead our privacy policy here.\nShare this page"),
    "en-citations": ("en", EN_STORY.replace("sale.", "sale.[4]").replace("sound.", "sound.[citation needed]")),
    "en-brace": ("en", EN_STORY + "\nAll of it {is listed} in the log."),
    "en-brace-in-menu": ("en", "menu {open}\n" + EN_STORY),
    "en-lorem": ("en", EN_STORY + "\nLorem ipsum dolor sit amet, and so on."),
    "en-javascript": ("en", "Please enable JavaScript to see this page.\n" + EN_STORY),
    "en-few-sentences": ("en", "Menu\nOne line is text. It has two sentences.\nFooter\nContact"),
    "en-all-menu": ("en", "Home\nNews\nSports\nWeather\nContact"),
    "en-counter": ("en", EN_STORY + "\n" + EN_STORY + "\n3 likes\n1.2K views"),
    "en-cart": ("en", "2 items in cart\n" + EN_STORY + "\n" + EN_STORY + "\nAnother story Read more..."),
    "en-shouting": ("en", "BREAKING NEWS ABOUT EVERYTHING TODAY\nSPECIAL OFFER ENDS TONIGHT\nTOP STORIES OF THE WEEK\n" + EN_STORY),
    "de-framed": ("de", "Startseite\nImpressum\n" + DE_STORY + "\nWeiter"),
    "fr-framed": ("fr", "Accueil\n" + FR_STORY + "\nEn savoir plus"),
    "ru-framed": ("ru", "Главная\n" + RU_STORY + "\nПодробнее"),
    "zh-clean": ("zh", ZH_STORY),
    "zh-framed": ("zh", "首页 > 文化 > 老街\n" + ZH_STORY + "\n分享到：微信 微博 QQ空间\n上一篇：河边的桥\n下一篇：山里的路\n1024 次阅读\n京ICP备00000000号"),
    "zh-more": ("zh", ZH_STORY + " 展开全文\n查看更多\n更多>>"),
    "zh-looks-like": ("zh", "分享到最后，大家都哭了。\n首页改版了三次，没有人满意。\n" + ZH_STORY),
    "zh-frame-only": ("zh", "当前位置：首页\n分享到微博\n更多\n老街茶馆\n上一页\n下一页\n版权所有 未经授权禁止转载"),
    "code": ("en", CODE),
}  # fmt: skip
