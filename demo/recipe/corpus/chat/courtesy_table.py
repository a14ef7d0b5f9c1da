"""Small talk as a table."""

from __future__ import annotations

# English question, English answer, Chinese question, Chinese answer.
COURTESY = [
    (
        "(Hello|Hi|Hey|Hi there|Hello there|Good day)[!|.]",
        "Hello! How can I help you?",
        "(你好|您好|嗨|你好呀|哈喽)[！|。|]",
        "你好！有什么可以帮你的吗？",
    ),
    ("Good morning[!|.]", "Good morning! How can I help you?", "(早上好|早安|早)[！|]", "早上好！有什么可以帮你的吗？"),
    ("Good evening[!|.]", "Good evening! How can I help you?", "晚上好[！|]", "晚上好！有什么可以帮你的吗？"),
    ("Good night[!|.]", "Good night! Sleep well.", "(晚安|我要睡了)[！|]", "晚安！祝你好梦。"),
    (
        "(How are you|How are you doing|How is it going|How do you feel|How are things)[ today]?",
        "I am fine, thank you. How can I help you?",
        "(你好吗|你怎么样|最近怎么样|你今天好吗)？",
        "我很好，谢谢！有什么可以帮你的吗？",
    ),
    (
        "(Thanks|Thank you|Thanks a lot|Thank you very much|Many thanks|Great, thanks)[!|.]",
        "You are welcome!",
        "(谢谢|谢谢你|多谢|非常感谢|太感谢了)[！|。|]",
        "不客气！",
    ),
    (
        "(Bye|Goodbye|See you|See you later|Bye bye)[!|.]",
        "Goodbye! Have a nice day.",
        "(再见|拜拜|回头见|下次见)[！|。|]",
        "再见！祝你愉快。",
    ),
    (
        "(Nice to meet you|Pleased to meet you)[!|.]",
        "Nice to meet you too!",
        "(很高兴认识你|认识你很高兴)[！|。]",
        "我也很高兴认识你！",
    ),
    (
        "(You are great|Well done|Good job|You are so helpful|You are smart)[!|.]",
        "Thank you! I am glad to help.",
        "(你真棒|做得好|你真聪明|太好了)[！|]",
        "谢谢！很高兴能帮到你。",
    ),
    (
        "(I am sad|I feel sad|I am unhappy|I feel down)[ today][.]",
        "I am sorry to hear that. I hope things get better soon.",
        "我(很难过|不开心|心情不好|今天不高兴)[。]",
        "听到这个我很难过，希望你很快好起来。",
    ),
    (
        "(I am happy|I feel great|I am so happy)[ today][!|.]",
        "That is wonderful! I am happy for you.",
        "我(很开心|很高兴|今天很快乐)[！|。]",
        "太好了！我为你高兴。",
    ),
    (
        "(I am tired|I feel tired|I am sleepy|I am exhausted)[.]",
        "Take a good rest. You deserve it.",
        "我(好累|累了|很困|很疲惫)[。]",
        "好好休息一下吧。",
    ),
    (
        "(I am bored|I have nothing to do|This is boring)[.]",
        "How about reading a book or taking a walk?",
        "(我好无聊|好无聊啊|没事做)[。]",
        "看看书或者散散步怎么样？",
    ),
    ("(Sorry|I am sorry|My apologies)[.]", "No problem at all.", "(对不起|抱歉|不好意思)[。]", "没关系。"),
    (
        "(Happy birthday|It is my birthday)[!| today]",
        "Happy birthday! I wish you a wonderful day.",
        "(今天是我的生日|我过生日)[！]",
        "生日快乐！祝你度过美好的一天。",
    ),
    (
        "(Can you help me|Could you help me|I need help|Help me|I have a question)[, please][?|.]",
        "Of course! What do you need?",
        "(你能帮我吗|可以帮我一下吗|我需要帮助|我有个问题)[？|。]",
        "当然可以！你需要什么？",
    ),
    (
        "(Tell me a joke|Make me laugh|Do you know a joke|Say something funny)[.|?|!]",
        "Why did the book look sad? Because it had too many problems.",
        "(讲个笑话|说个笑话吧|逗我笑)[。|！]",
        "为什么书看起来很难过？因为它有太多问题。",
    ),
    (
        "(Ok|Okay|I see|Got it|Alright|Understood)[.]",
        "Great! Is there anything else I can do for you?",
        "(好的|知道了|明白了|好吧|懂了)[。]",
        "好的！还有什么可以帮你的吗？",
    ),
    (
        "(Yes|No|Maybe)[.]",
        "I see. What would you like to talk about?",
        "(是的|不是|也许)[。]",
        "明白了。你想聊些什么？",
    ),
    (
        "(Merry Christmas|Happy new year)[!]",
        "Thank you! The same to you.",
        "(新年快乐|圣诞快乐|春节快乐)[！]",
        "谢谢！也祝你快乐。",
    ),
    (
        "(What are you doing|What's up)[ now]?",
        "I am here, waiting to help you.",
        "(你在干什么|你在做什么|在吗)？",
        "我在这里，随时可以帮你。",
    ),
    (
        "(I love you|I like you)[!|.]",
        "Thank you, that is very kind of you.",
        "我(喜欢你|爱你)[！|。]",
        "谢谢你，你真好。",
    ),
]
