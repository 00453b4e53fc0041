"""References in several scripts and two made systems: `careful` loses less of them than `careless`."""

import random
from types import SimpleNamespace

import pytest

REFERENCES = [
    "Select the cells that you want to format.",
    "The document was saved (twice), but not printed!",
    "Wählen Sie die Zellen aus, die formatiert werden sollen.",
    "Öffnet ein Menü mit weiteren Befehlen für Tabellen.",
    "Seleccioneu les cel·les que voleu formatar.",
    "Vyberte buňky, které chcete naformátovat.",
    "Выберите ячейки, которые нужно отформатировать.",
    "Документ сохранён, но не напечатан.",
    "Επιλέξτε τα κελιά που θέλετε να μορφοποιήσετε.",
    "选择要设置格式的单元格。",
    "书式を設定するセルを選択します。",
    "حدد الخلايا التي تريد تنسيقها.",
    "उन कक्षों का चयन करें जिन्हें आप स्वरूपित करना चाहते हैं।",
    "เลือกเซลล์ที่คุณต้องการจัดรูปแบบ",
    "Biçimlendirmek istediğiniz hücreleri seçin.",
    "서식을 지정할 셀을 선택합니다.",
    "OK",
    "1 + 2 = 3 😀",
    'Click "Insert", then choose Table > Columns...',
    "a b",
] * 2


def system(share: float, seed: int) -> list[str]:
    """Every character of the references is lost with probability `share`."""
    rng = random.Random(seed)
    return ["".join(c for c in text if rng.random() > share) for text in REFERENCES]


@pytest.fixture(scope="session")
def sentences() -> SimpleNamespace:
    documents = [f"page {n // 4}" for n in range(len(REFERENCES))]
    careful, careless = system(0.10, seed=1), system(0.105, seed=7)
    return SimpleNamespace(references=REFERENCES, careful=careful, careless=careless, documents=documents)
