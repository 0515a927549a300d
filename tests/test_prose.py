"""The prose check finds what breaks a rule, and nothing else."""

from tests.prose import in_docstrings, in_documentation, in_texts

PAGE = f"""# What this is

What is said here is wrong. What is it? It says
so. Where it is does not
matter.

* Who reads this is at fault.
* Everybody who reads this is not.

{"x" * 101}
| {"x" * 101} |

```
What is shown as printed.
{"x" * 101}
```
"""


def test_faults_of_a_page_are_found_with_their_lines() -> None:
    assert list(in_documentation(PAGE)) == [
        "3: a sentence opens with 'What is said here is wrong.'",
        "3: a sentence opens with 'Where it is does not matter.'",
        "7: a sentence opens with 'Who reads this is at fault.'",
        "10: 101 columns, more than 100",
    ]


def test_a_docstring_opens_with_a_standard_verb() -> None:
    source = 'def a():\n "Give it."\ndef b():\n "Return it."\nclass C:\n def c(self):\n  "Tells it."\n'
    assert list(in_docstrings(source)) == [
        "1: the docstring of a opens with 'Give'",
        "6: the docstring of c opens with 'Tells'",
    ]


def test_a_sentence_about_code_does_not_open_with_a_question_word() -> None:
    source = '"""A module.\n\nWhere it is does not matter."""\nPORT = 1\n"""What it\nis."""\n'
    assert list(in_texts(source)) == [
        "1: a sentence opens with 'Where it is does not matter.'",
        "5: a sentence opens with 'What it is.'",
    ]
