# ruff: noqa: E501 (tables of words read best in long lines)
"""Verbs, nouns and properties of invented tools: English/Chinese."""

from __future__ import annotations


def _pairs(text: str) -> list[list[str]]:
    return [item.replace("_", " ").split("/") for item in text.split()]


VERBS = _pairs("""
get/获取 create/创建 delete/删除 update/更新 list/列出 find/查找 check/检查 send/发送 start/启动 stop/停止 open/打开 close/关闭 add/添加
remove/移除 export/导出 import/导入 archive/归档 approve/批准 reject/拒绝 assign/分配 print/打印 scan/扫描 sync/同步 copy/复制 share/分享
lock/锁定 unlock/解锁 rename/重命名 measure/测量 count/统计 sort/排序 merge/合并 split/拆分 compress/压缩 upload/上传 download/下载 install/安装
restart/重启 reserve/预留 cancel/取消 pause/暂停 resume/恢复 publish/发布 verify/验证 sign/签署 validate/校验 schedule/安排 monitor/监控
rate/评价 inspect/检验 repair/修理 rent/租用 sell/出售 record/录制 analyze/分析 filter/筛选 encrypt/加密 clean/清理 test/测试 label/标注
buy/购买 order/订购 book/预订 show/显示 read/读取 write/写入 move/移动 search/搜索 track/跟踪 calculate/计算 convert/转换 generate/生成 make/制作 set/设置""")
NOUNS = _pairs("""
report/报告 contract/合同 employee/员工 customer/客户 project/项目 inventory/库存 warehouse/仓库 vehicle/车辆 sensor/传感器 camera/摄像头 robot/机器人
drone/无人机 printer/打印机 server/服务器 backup/备份 license/许可证 certificate/证书 badge/徽章 locker/储物柜 elevator/电梯 greenhouse/温室 pump/水泵
valve/阀门 engine/发动机 battery/电池 antenna/天线 satellite/卫星 telescope/望远镜 microscope/显微镜 sample/样本 experiment/实验 patient/病人 prescription/处方
vaccine/疫苗 clinic/诊所 classroom/教室 course/课程 exam/考试 grade/成绩 scholarship/奖学金 library/图书馆 magazine/杂志 podcast/播客 channel/频道 episode/剧集
album/相册 photo/照片 video/视频 gallery/画廊 exhibition/展览 auction/拍卖 painting/油画 sculpture/雕塑 garden/花园 tree/树木 crop/庄稼 tractor/拖拉机 harvest/收成
menu/菜单 kitchen/厨房 oven/烤箱 fridge/冰箱 budget/预算 expense/支出 salary/工资 loan/贷款 mortgage/抵押 insurance/保险 claim/理赔 policy/保单 tax/税款
donation/捐款 coupon/优惠券 voucher/代金券 discount/折扣 membership/会员 subscription/订阅 newsletter/通讯 campaign/活动 banner/横幅 survey/问卷 ballot/选票
passport/护照 visa/签证 luggage/行李 cruise/邮轮 ferry/渡轮 bridge/桥梁 tunnel/隧道 parking/停车位 permit/许可 tower/铁塔 lamp/路灯 fountain/喷泉 stadium/体育场 gym/健身房
team/团队 player/球员 score/比分 tournament/比赛 trophy/奖杯 puzzle/谜题 chess/象棋 toy/玩具 costume/服装 shoe/鞋子 ring/戒指 clock/钟 bell/铃 key/钥匙 door/门禁 window/窗口
module/模块 package/软件包 branch/分支 commit/提交 pipeline/流水线 container/容器 cluster/集群 queue/队列 cache/缓存 token/令牌 session/会话 webhook/回调 schema/模式 index/索引
domain/域名 firewall/防火墙 router/路由 cable/电缆 disk/磁盘 folder/文件夹 archive/档案 template/模板 widget/组件 theme/主题 font/字体 icon/图标 plugin/插件 macro/宏
dentist/牙医 museum/博物馆 beach/海滩 cafe/咖啡馆 hospital/医院 pharmacy/药店 school/学校 bank/银行 park/公园 bakery/面包店 cinema/电影院 charger/充电桩 apartment/公寓 house/房子
lawyer/律师 tutor/家教 plumber/水管工 nurse/护士 flower/鲜花 gift/礼物 cake/蛋糕 wine/葡萄酒 shirt/衬衫 dress/裙子 book/书 game/游戏 job/职位 concert/音乐会 lecture/讲座""")
PROPERTIES = _pairs("""
price/价格 owner/主人 status/状态 score/得分 height/高度 length/长度 weight/重量 age/年龄 address/地址 phone_number/电话 email_address/邮箱 birthday/生日 salary/工资 rating/评分
schedule/日程 timetable/时刻表 opening_hours/营业时间 capital/首都 population/人口 area/面积 currency/货币 language/语言 flag/国旗 climate/气候 altitude/海拔 traffic/路况 pollution/污染
air_quality/空气质量 sunrise/日出时间 sunset/日落时间 tide/潮汐 humidity/湿度 wind_speed/风速 temperature/温度 exchange_rate/汇率 interest_rate/利率 tax_rate/税率 market_value/市值
revenue/收入 profit/利润 balance/余额 debt/债务 discount/折扣 stock_level/库存量 delivery_date/送货日期 return_policy/退货政策 warranty/保修 manual/说明书 ingredients/配料 nutrition/营养
director/导演 author/作者 publisher/出版社 lyrics/歌词 genre/类型 plot/剧情 release_date/上映日期 box_office/票房 cast/演员 winner/冠军 ranking/排名 record/记录 coach/教练 lineup/阵容
blood_type/血型 diagnosis/诊断 dosage/剂量 symptoms/症状 side_effects/副作用 definition/定义 synonym/同义词 pronunciation/发音 origin/起源 history/历史 summary/摘要 translation/译文
version/版本 size/大小 location/位置 battery_level/电量 uptime/运行时间 memory_usage/内存占用 license/许可 download_count/下载量 checksum/校验和 creator/创建者 deadline/截止日期 progress/进度
horoscope/星座运势 zodiac_sign/生肖 lucky_color/幸运色 nickname/昵称 hobby/爱好 job_title/职位 department/部门 manager/经理 grade/成绩 attendance/出勤 homework/作业 seat_number/座位号""")
