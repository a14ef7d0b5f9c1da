
"""Facts everybody knows, as a table."""

from __future__ import annotations

# English question, English answer, Chinese question, Chinese answer.
FACTS = [
    ("(What color|What colour) is (the sky|the sea)?", "It is blue.", "(天空|大海)是什么颜色？", "是蓝色的。"),
    ("(What color|What colour) is (grass|a leaf)?", "It is green.", "(草|树叶)是什么颜色？", "是绿色的。"),
    ("(What color|What colour) is (snow|milk)?", "It is white.", "(雪|牛奶)是什么颜色？", "是白色的。"),
    ("(What color|What colour) is (a banana|a lemon)?", "It is yellow.", "(香蕉|柠檬)是什么颜色？", "是黄色的。"),
    (
        "How many days (are in|does|are there in) a week[ have]?",
        "A week has 7 days.",
        "一(周|个星期)有几天？",
        "一周有7天。",
    ),
    ("How many months (are in|are there in) a year?", "A year has 12 months.", "一年有几个月？", "一年有12个月。"),
    ("How many hours (are in|are there in) a day?", "A day has 24 hours.", "一天有几个小时？", "一天有24小时。"),
    (
        "How many minutes (are in|are there in) an hour?",
        "An hour has 60 minutes.",
        "一小时有几分钟？",
        "一小时有60分钟。",
    ),
    (
        "How many seconds (are in|are there in) a minute?",
        "A minute has 60 seconds.",
        "一分钟有几秒？",
        "一分钟有60秒。",
    ),
    ("How many legs does (a dog|a cat|a horse|a cow) have?", "It has 4 legs.", "(狗|猫|马|牛)有几条腿？", "有4条腿。"),
    ("How many legs does a spider have?", "A spider has 8 legs.", "蜘蛛有几条腿？", "蜘蛛有8条腿。"),
    ("How many legs does (an ant|a bee|an insect) have?", "It has 6 legs.", "(蚂蚁|蜜蜂|昆虫)有几条腿？", "有6条腿。"),
    (
        "(What is|Which is) the (largest|biggest) planet?",
        "The largest planet is Jupiter.",
        "最大的行星是什么？",
        "最大的行星是木星。",
    ),
    (
        "(What is|Which is) the (largest|biggest) ocean?",
        "The largest ocean is the Pacific.",
        "最大的海洋是什么？",
        "最大的海洋是太平洋。",
    ),
    (
        "(What is|Which is) the (highest|tallest) mountain?",
        "The highest mountain is Mount Everest.",
        "最高的山是什么？",
        "最高的山是珠穆朗玛峰。",
    ),
    (
        "(What is|Which is) the (fastest) animal[ on land]?",
        "The fastest land animal is the cheetah.",
        "跑得最快的动物是什么？",
        "跑得最快的动物是猎豹。",
    ),
    (
        "(What is the|Which is the) (largest|biggest) animal?",
        "The largest animal is the blue whale.",
        "最大的动物是什么？",
        "最大的动物是蓝鲸。",
    ),
    (
        "(What is the|Tell me the) chemical formula of water?",
        "The formula of water is H2O.",
        "水的化学式是什么？",
        "水的化学式是H2O。",
    ),
    (
        "At what temperature does water (boil|start to boil)?",
        "Water boils at 100 degrees Celsius.",
        "水在多少度沸腾？",
        "水在100摄氏度沸腾。",
    ),
    (
        "At what temperature does water freeze?",
        "Water freezes at 0 degrees Celsius.",
        "水在多少度结冰？",
        "水在0摄氏度结冰。",
    ),
    ("Where does the sun (rise|come up)?", "The sun rises in the east.", "太阳从哪里升起？", "太阳从东方升起。"),
    ("Where does the sun (set|go down)?", "The sun sets in the west.", "太阳从哪里落下？", "太阳从西方落下。"),
    (
        "Who wrote (Romeo and Juliet|Hamlet)?",
        "It was written by William Shakespeare.",
        "《(哈姆雷特|罗密欧与朱丽叶)》是谁写的？",
        "是莎士比亚写的。",
    ),
    (
        "Who wrote Journey to the West?",
        "It was written by Wu Cheng'en.",
        "《西游记》是谁写的？",
        "《西游记》是吴承恩写的。",
    ),
    (
        "Who wrote Dream of the Red Chamber?",
        "It was written by Cao Xueqin.",
        "《红楼梦》是谁写的？",
        "《红楼梦》是曹雪芹写的。",
    ),
    (
        "Who painted the Mona Lisa?",
        "The Mona Lisa was painted by Leonardo da Vinci.",
        "《蒙娜丽莎》是谁画的？",
        "《蒙娜丽莎》是达芬奇画的。",
    ),
    ("(What do bees make|What do bees produce)?", "Bees make honey.", "蜜蜂酿什么？", "蜜蜂酿蜂蜜。"),
    ("What do (pandas) eat?", "Pandas eat bamboo.", "熊猫吃什么？", "熊猫吃竹子。"),
    (
        "(How many continents are there|How many continents does the world have)?",
        "There are 7 continents.",
        "世界上有几个大洲？",
        "世界上有7个大洲。",
    ),
    (
        "What is the (longest river)[ in the world]?",
        "The longest river is the Nile.",
        "世界上最长的河是什么？",
        "世界上最长的河是尼罗河。",
    ),
    (
        "What is a (baby dog|young dog)[ called]?",
        "A young dog is called a puppy.",
        "中国最长的河是什么？",
        "中国最长的河是长江。",
    ),
]
