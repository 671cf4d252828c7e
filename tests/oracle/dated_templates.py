"""Chat templates that ask for the clock, and the days they are given, for the recordings of `record_dates.py`."""

DAYS = ("2026-11-27", "2024-02-29", "2026-01-03")
TEMPLATES = {
    "as Llama 3.2's": "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    "{{- 'Today Date: ' + date_string + '\\n\\n' }}\n"
    "{%- for message in messages %}\n    {{- message['role'] + ': ' + message['content'] | trim }}\n{%- endfor %}\n",
    "several formats": "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%A, %-d %B %Y') }} {{ strftime_now('%j/%y') }}",
    "a format of a variable": "{% set form = '%H:%M on %x' %}{{ strftime_now(form) }}{{ strftime_now(format='%a') }}",
    "a macro and a loop": "{% macro when() %}<{{ strftime_now('%d.%m.%Y') | replace('.', '/') }}>{% endmacro %}"
    "{% for message in messages %}{{ when() + message.content }}{% endfor %}",
    "a line end at its beginning": "\n{{ strftime_now('%Y') }}\n",
    "white space at its beginning": "   {% if true %}{{ strftime_now('%Y') }}{% endif %}  ",
    "text at its beginning": "100%\n{%set day = strftime_now('%d')%}{{ day|int + 1 }}% of {{ strftime_now('%b%%%e') }}",
}
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the hall"}]
